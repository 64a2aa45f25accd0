"""Jobs that are disturbed in the midst of a stage, and what their end has to be."""

from __future__ import annotations

import re
import shutil

from pipeline.artifacts import Artifact
from tests.fault_table import Row, lost_metrics

from .conftest import BATCH, EVERY, STEPS, TWO, Job, Lab, curve, events


def begun(lab: Lab, whole: Job, name: str, nodes: tuple[str, ...] = TWO, words: tuple[str, ...] = ()) -> Job:
    """A job of which everything but the diffusion stage is done, in the midst of that stage. It has a preview at each
    step: else it would be over in four seconds, before the fault."""
    folder = lab.folder / "shared" / name
    shutil.copytree(whole.folder / "runs", folder / "runs")
    for made in ("artifacts/diffusion", "pipelines", "tracking", "mlartifacts"):
        shutil.rmtree(folder / "runs" / made, ignore_errors=True)
    (folder / "runs" / "mlflow.db").unlink()
    job = lab.sbatch(name, "diffusion.training.preview_every=1", *words, options=nodes)
    job.wait_step("diffusion", EVERY + 10)
    return job


def requeued(job: Job) -> None:
    """Wait until it has been queued again and runs, and ends well; it was restarted once."""
    job.finish()
    assert job.facts()["Restarts"] == "1", job.told()


def same_end(job: Job, whole: Job, stage: str, again: int, row: Row, at: float) -> None:
    """The losses of all steps, by whichever attempt, and the final weights are those of the undisturbed run; then
    `cost`."""
    root = job.folder / "runs"
    for name in STEPS:
        assert curve(root, name) == curve(whole.folder / "runs", name)
        assert sorted(curve(root, name)) == list(range(1, STEPS[name] + 1))
    assert weights(finished(job, stage)) == weights(finished(whole, stage))
    first = min(root.glob(f"artifacts/{stage}/*/work/spool/*.jsonl"))
    reached = int(re.findall(rf'"step":(\d+),"values":{{"{stage}/train_loss"', first.read_text())[-1])
    cost(job, stage, again, row, at, reached)
    row.end = "equal"


def cost(job: Job, stage: str, again: int, row: Row, at: float, reached: int) -> None:
    """Fill the row of a fault at the moment `at` that ended the first attempt after the step `reached`: at most `again`
    steps were done twice, and MLflow has all losses."""
    root = job.folder / "runs"
    row.again.append(reached - finished(job, stage).summary["resumed_from"] // BATCH)
    assert 0 <= row.again[0] <= again, job.told()
    told = [event for event in events(root, stage) if event["kind"] == "metrics"]
    row.seconds.append(min(event["ts_ms"] for event in told if event["step"] > reached) / 1000 - at)
    want = {step: value for step, (value,) in curve(root, stage).items()}
    row.metrics = lost_metrics(f"sqlite:///{root}/mlflow.db", stage, want)
    assert row.metrics == 0


def finished(job: Job, stage: str) -> Artifact:
    (manifest,) = job.folder.glob(f"runs/artifacts/{stage}/*/manifest.json")
    return Artifact.load(manifest.parent)


def weights(artifact: Artifact) -> dict[str, str]:
    """Digest of each file of weights."""
    return {name: file["sha256"] for name, file in artifact.manifest["files"].items() if name.endswith(".safetensors")}
