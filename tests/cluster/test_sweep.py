"""`sbatch --array slurm/sweep_ldm.sh` on a real Slurm cluster: four elements at once, one autoencoder that they share.

Two pairs of elements differ in what changes no number (a clip that is never reached), so that each pair's losses must
be equal bit for bit, whichever of the two was disturbed. Outcomes are asserted, never times.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.files import read_json
from pipeline.sweeps import report
from pipeline.sweeps.study import read

from .conftest import Job, Lab, events

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

STEPS, EVERY, LOSS = 400, 50, "diffusion/train_loss"
SWEEP = f"""\
name: lr
config: small.yaml
overrides: {{cluster.workers: 1, autoencoder.training.steps: 100, diffusion.training.steps: {STEPS}}}
keys:
  diffusion.training.learning_rate: [1e-3, 1e-6]
  diffusion.training.clip: [1e6, 2e6]
"""


@dataclass
class Task(Job):
    """A task of the array; its id is ARRAY_NUMBER."""

    @property
    def number(self) -> int:
        return int(self.id.partition("_")[2])

    @property
    def log(self) -> str:
        path = self.folder / f"ldm-sweep-{self.id}.out"
        return path.read_text() if path.exists() else ""

    def losses(self) -> dict[int, float]:
        """Step -> training loss of its denoiser, as far as it has come; a step that was done twice is told once."""
        places = list(self.folder.glob(f"runs/sweeps/*/elements/{self.number:06d}/place.json"))
        if not places:
            return {}
        folder = Path(read_json(places[0])["folders"]["diffusion"])
        told = [e for e in events(self.folder / "runs", "diffusion", folder.name) if e["kind"] == "metrics"]
        return {e["step"]: e["values"][LOSS] for e in told if LOSS in e["values"]}


def test_a_sweep_as_an_array_of_4(lab: Lab) -> None:
    """Four tasks at once, two on each of two nodes: the autoencoder is trained once, the others wait for it; one task
    that gets a notice is queued again alone, and ends as if nothing had been."""
    (lab.folder / "shared" / "lr.yaml").write_text(SWEEP)
    options = ("--array=0-3", "--nodes=1", "--cpus-per-task=2", "--exclude=node3")
    array = lab.sbatch("sweep", options=options, script="sweep_ldm.sh", config="lr.yaml")
    tasks = [Task(lab, f"{array.id}_{number}", array.folder) for number in range(4)]
    lab.jobs[lab.jobs.index(array) :] = tasks
    disturbed = tasks[2]
    disturbed.wait(lambda: {task.state for task in tasks} == {"RUNNING"}, "four tasks at once")
    assert Counter(task.facts()["NodeList"] for task in tasks) == {"node1": 2, "node2": 2}

    disturbed.wait(lambda: max(disturbed.losses(), default=0) > EVERY, f"step {EVERY} of its denoiser")
    lab.exec("scancel", "--batch", "--signal=USR1", disturbed.id)
    for task in tasks:
        task.finish()
        assert task.facts()["Restarts"] == ("1" if task is disturbed else "0"), task.told()
    assert "queueing again" in disturbed.log and "notice: SIGUSR1" in disturbed.log

    root = array.folder / "runs"
    for stage, made in {"ingest": 1, "autoencoder": 1, "encode": 1, "diffusion": 4}.items():
        assert len(list(root.glob(f"artifacts/{stage}/*/manifest.json"))) == made
    starts = [event for event in events(root, "autoencoder") if event["kind"] == "start"]
    assert len(starts) == 1  # by one process, in one go
    assert sum("autoencoder: 1 rank on" in task.log for task in tasks) == 1
    assert len({line for task in tasks for line in task.log.splitlines() if "Ray's head is" in line}) == 5
    curves = [task.losses() for task in tasks]
    assert all(sorted(curve) == list(range(1, STEPS + 1)) for curve in curves)
    assert curves[0] == curves[1] and curves[2] == curves[3] and curves[0] != curves[2]

    study = read(lab.folder / "shared" / "lr.yaml", [f"run.root={root}"])
    text = report.verdict(study, report.points(study))
    assert text.startswith("Winner: learning_rate 0.001, clip "), text
    parent, children = in_tracker(root)
    assert parent.info.status == "FINISHED" and text in parent.data.tags["mlflow.note.content"]
    assert {name: run.info.status for name, run in children.items()} == {f"lr.{n}": "FINISHED" for n in range(4)}
    for run in children.values():  # each shows the curves of the shared stage, whoever trained it
        assert {"autoencoder/val_psnr", "diffusion/val_loss"} <= run.data.metrics.keys()


def in_tracker(root: Path) -> tuple[Any, dict[str, Any]]:
    """The sweep's run, and the runs under it by name."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (parent,) = [run for run in runs if run.info.run_name == "lr"]
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    found = {run.info.run_name: run for run in below}
    assert len(found) == len(below)
    return parent, found
