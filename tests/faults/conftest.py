"""One undisturbed run that all faults are compared with, runs that go on from its first three stages, and the table of
what was measured: LDM_FAULTS_REPORT names the file that it is written to (`make test-faults`)."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.artifacts import Artifact
from pipeline.checkpoint import listing
from tests.integration.test_ray import curve, family, kill_all, start

BATCH, EVERY, STEPS = 32, 10, 40
LIMIT = 900  # seconds for anything: the machine may be busy; what is awaited is a state, not a time
CONFIG = f"""\
run: {{name: small}}
data: {{source: {{kind: digits}}, size: 16, channels: 1, shard_size: 400}}
autoencoder:
  model: {{kind: kl, width: 8, multipliers: [1, 2], blocks: 1, latent_channels: 2, groups: 4, attention: false}}
  training: {{batch_size: {BATCH}, steps: {STEPS}, half_lives: [200], log_every: 1, save_every: {EVERY},
             validate_every: 20, preview_every: 20, micro_batch: 8}}
diffusion:
  backbone: {{kind: dit, width: 32, depth: 2, heads: 2, patch: 2}}
  training: {{batch_size: {BATCH}, steps: {STEPS}, half_lives: [200], log_every: 1, save_every: {EVERY},
             validate_every: 20, preview_every: 20, micro_batch: 1}}
cluster: {{workers: 2, threads: 1}}
"""


@dataclass
class Row:
    """What a fault did, as the table shows it. samples, metrics: lost; again: steps done twice, at most."""

    fault: str = ""
    how: str = ""
    times: int = 1
    samples: int = 0
    metrics: int = 0
    seconds: list[float] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    end: str = ""
    test: str = ""

    def line(self) -> str:
        seconds, again = span([round(s) for s in self.seconds]), span(self.again)
        cells = (self.fault, self.how, self.times, self.samples, self.metrics, seconds, again, self.end)
        return f"| {' | '.join(map(str, cells))} | `{self.test}` |"


def span(values: list[int]) -> str:
    """The smallest to the largest."""
    return " to ".join(map(str, sorted({min(values), max(values)}))) if values else "-"


ROWS: list[Row] = []
NOT_DONE: dict[str, str] = {}  # test -> how it ended instead


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """The test's row of the table; it counts if the test passes."""
    made = Row(test=request.node.name)
    yield made
    ROWS.append(made)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.outcome != "passed":
        NOT_DONE[report.nodeid.rpartition("::")[2]] = report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get("LDM_FAULTS_REPORT")
    if path and ROWS:
        Path(path).write_text(report())


COLUMNS = "fault, how it was injected, times, samples lost, metrics lost, s to recover, steps done again, end, test"


def report() -> str:
    """docs/results/faults.md."""
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    cpus, day = len(os.sched_getaffinity(0)), time.strftime("%Y-%m-%d")
    head = HEADER.format(cpus=cpus, machine=platform.machine(), revision=revision, every=EVERY, steps=STEPS, day=day)
    columns = COLUMNS.split(", ")
    rows = [row.line() for row in ROWS if row.test not in NOT_DONE]
    lines = [head, f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns), *rows]
    if NOT_DONE:
        ended = ", ".join(f"`{test}` ({outcome})" for test, outcome in NOT_DONE.items())
        lines += ["", f"Not in the table: {ended}."]
    return "\n".join([*lines, ""])


HEADER = """\
# Faults

Each fault is injected into a real run (`ldm diffusion` through Ray Train, DeepSpeed, gloo, MLflow), which then has to
come to its end by itself, or, where the machine or the command itself was lost, by the same command again. Written by
`make test-faults`; a test of the table's last column alone: `python -m pytest -m faults tests/faults -k TEST`.

- *Lost samples*: images that were not trained on in their place. *Lost metrics*: points of the loss's curve that MLflow
  has not in the end, or not with the value that was computed.
- *Seconds to recover*: from the fault to the first step that had not been done before. They are those of two ranks
  that talk by gloo on {cpus} CPU cores ({machine}), tiny models, and mostly processes that start and import; on GPUs
  the time to load NCCL, to compile and to read a large checkpoint comes on top.
- *Steps done again*: those between the last whole checkpoint and the fault; {every} is the interval (`save_every`) of
  runs of {steps} steps.
- *End*: "equal" is: the losses of all steps, and the final weights' digests, are those of the undisturbed run, bit for
  bit.

Measured {day}, revision {revision}.
"""


@dataclass
class Fault:
    """A run that is disturbed, beside the one that was not."""

    config: Path
    root: Path
    whole: Path
    process: subprocess.Popen[bytes] | None = None
    verb: str = "diffusion"
    options: tuple[str, ...] = ()
    env: dict[str, str] | None = None

    @property
    def stage(self) -> str:
        return "autoencoder" if self.verb == "autoencoder" else "diffusion"

    @property
    def log(self) -> str:
        return self.config.with_suffix(".log").read_text()

    @classmethod
    def after(cls, whole: Path, root: Path, verb: str = "diffusion", **more: Any) -> Fault:
        """A run below `root` of which all stages before the one to disturb are done."""
        before = {"autoencoder": 1, "encode": 2, "diffusion": 3}[verb]
        for name in ("ingest", "autoencoder", "encode")[:before]:
            shutil.copytree(whole / "artifacts" / name, root / "artifacts" / name)
        if before == 3:
            shutil.copytree(whole / "latents", root / "latents")
        config = root.with_name(f"{root.name}.yaml")
        config.write_text(CONFIG)
        return cls(config, root, whole, verb=verb, **more)

    def start(self, *more: str) -> None:
        self.process = start(self.verb, self.config, self.root, *self.options, *more, env=self.env)

    def wait(self, condition: Callable[[], object], poll: float = 0.02) -> None:
        assert self.process
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert self.process.poll() is None, self.log[-3000:]
            assert time.monotonic() < deadline, f"nothing happened for {LIMIT} s\n{self.log[-3000:]}"
            time.sleep(poll)

    def wait_step(self, step: int) -> None:
        """Until this stage has logged the step."""
        self.wait(lambda: self.reached() >= step)

    def finish(self) -> None:
        assert self.process and self.process.wait(LIMIT) == 0, self.log[-3000:]

    def reached(self) -> int:
        """The last step that was logged."""
        return max(curve(self.root, self.stage), default=0)

    def events(self) -> Iterator[dict[str, Any]]:
        """All whole lines of this stage's spools, in order."""
        for path in sorted(self.root.glob(f"artifacts/{self.stage}/*/work/spool/*.jsonl")):
            for line in path.read_text().splitlines():
                if line.endswith("}"):
                    yield json.loads(line)

    def checkpoints(self) -> list[Path]:
        """The whole ones, newest first."""
        found = [folder / saved.name for folder in self.root.glob(f"artifacts/{self.stage}/*/work/checkpoints")
                 for saved in listing(folder)]  # fmt: skip
        return [path for path in found if (path / "manifest.json").exists()]

    def undone(self) -> int:
        """Steps since the newest whole checkpoint, of a run whose ranks are dead."""
        whole = self.checkpoints()
        return self.reached() - (int(whole[0].name.split("-")[1]) // BATCH if whole else 0)

    def again(self, reached: int) -> int:
        """Steps between where the last attempt went on and what had been reached."""
        (manifest,) = self.root.glob(f"artifacts/{self.stage}/*/manifest.json")
        return reached - Artifact.load(manifest.parent).summary["resumed_from"] // BATCH

    def recovered(self, since: float, reached: int) -> float:
        """Seconds from a moment (`time.time()`) to the first step after `reached`."""
        for event in self.events():
            if event["kind"] == "metrics" and event["step"] > reached and event["ts_ms"] / 1000 > since:
                return float(event["ts_ms"] / 1000 - since)
        raise AssertionError(f"no step after {reached}")

    def equal(self, exact: bool = True) -> str:
        """Check the whole curve, each step once, and the weights against the undisturbed run; the row's last word."""
        want, got = curve(self.whole, self.stage), curve(self.root, self.stage)
        assert sorted(got) == list(range(1, STEPS + 1)) and all(len(values) == 1 for values in got.values())
        if not exact:
            far = max(abs(got[step][0] - want[step][0]) / abs(want[step][0]) for step in want)
            assert far <= 1e-5
            return f"within {far:.0e}"
        assert got == want
        assert curve(self.root, self.stage, "val_loss") == curve(self.whole, self.stage, "val_loss")
        assert content(self.root, self.stage) == content(self.whole, self.stage)
        return "equal"

    def workers(self) -> list[psutil.Process]:
        """The ranks' processes."""
        assert self.process
        return [p for p in family(self.process) if is_rank(p)]


def settle(run: Fault, row: Row, at: float, reached: int, most: int = EVERY) -> None:
    """The end of a fault at a moment and a step: nothing lost, at most `most` steps done again."""
    assert reached < STEPS, "the stage was over before the fault"
    row.seconds.append(run.recovered(at, reached))
    row.again.append(run.again(reached))
    assert 0 <= row.again[-1] <= most
    row.metrics = lost_metrics(f"sqlite:///{run.root}/mlflow.db", run)
    assert row.metrics == 0
    row.end = run.equal()


def is_rank(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def content(root: Path, stage: str) -> dict[str, str]:
    """Digest of each file of weights in a finished artifact."""
    (manifest,) = root.glob(f"artifacts/{stage}/*/manifest.json")
    files = json.loads(manifest.read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


def lost_metrics(uri: str, run: Fault) -> int:
    """How many points of the loss's curve MLflow has not, or not with their value."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (stage,) = [one for one in found if one.info.run_name == f"4 {run.stage}"]
    history = client.get_metric_history(stage.info.run_id, f"{run.stage}/train_loss")
    want = {step: values[0] for step, values in curve(run.root, run.stage).items()}
    assert len(history) == len({point.step for point in history})
    got = {point.step: point.value for point in history}
    return sum(got.get(step) != value for step, value in want.items())


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that nobody disturbed."""
    config = tmp_path_factory.mktemp("whole") / "small.yaml"
    config.write_text(CONFIG)
    run = Fault(config, config.parent / "runs", config.parent / "runs")
    run.start()
    run.finish()
    return run.root


@pytest.fixture
def fault(whole: Path, tmp_path: Path) -> Iterator[Callable[..., Fault]]:
    """`fault(*overrides)`: a run of which all stages before the disturbed one are done; ends all it has started."""
    made: list[Fault] = []

    def make(*options: str, verb: str = "diffusion", root: Path | None = None, env: Any = None) -> Fault:
        folder = root or tmp_path / f"runs{len(made)}"
        made.append(Fault.after(whole, folder, verb, options=options, env=env))
        return made[-1]

    yield make
    for one in made:
        if one.process and one.process.poll() is None:
            kill_all(one.process)
