"""One undisturbed run that all faults are compared with, and runs that go on from its first three stages."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.artifacts import Artifact
from pipeline.tracking.spool import whole_lines
from pipeline.training.checkpoint import listing
from tests.fault_table import Row, lost_metrics, write_section
from tests.fault_table import pytest_runtest_logreport as pytest_runtest_logreport
from tests.fault_table import row as row
from tests.integration.test_ray import curve, family, kill_all, start

BATCH, EVERY, STEPS = 32, 10, 40
LIMIT = 900  # seconds for anything: the machine may be busy; what is awaited is a state, not a time
# A preview at each step: the stage would otherwise be over in a second, before the fault
CONFIG = f"""\
run: {{name: small}}
data: {{source: {{kind: digits}}, size: 16, channels: 1, shard_size: 400}}
autoencoder:
  model: {{kind: kl, width: 8, multipliers: [1, 2], blocks: 1, latent_channels: 2, groups: 4, attention: false}}
  training: {{precision: fp32,
             batch_size: {BATCH}, steps: {STEPS}, half_lives: [200], log_every: 1, save_every: {EVERY},
             validate_every: 20, preview_every: 1, micro_batch: 8}}
diffusion:
  backbone: {{kind: dit, width: 32, depth: 2, heads: 2, patch: 2}}
  training: {{precision: fp32,
             batch_size: {BATCH}, steps: {STEPS}, half_lives: [200], log_every: 1, save_every: {EVERY},
             validate_every: 20, preview_every: 1, micro_batch: 1}}
cluster: {{workers: 2, threads: 1}}
"""


def pytest_sessionfinish(session: pytest.Session) -> None:
    write_section("On one machine, and on the nodes of a Ray cluster", ABOUT)


ABOUT = f"""\
Written by `make test-faults`; a test of the last column alone: `python -m pytest -m faults tests/faults -k TEST`.
The runs have {STEPS} steps and a checkpoint every {EVERY}.
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

    def begin(self, *more: str) -> None:
        """Start it, and wait until it is past its first checkpoint."""
        self.start(*more)
        self.wait_step(EVERY + 3)

    def lost_metrics(self, uri: str | None = None) -> int:
        """How many points of the stage's losses its tracker (None: the root's own) has not, or not with their value."""
        want = {step: values[0] for step, values in curve(self.root, self.stage).items()}
        return lost_metrics(uri or f"sqlite:///{self.root}/mlflow.db", self.stage, want)

    def wait_step(self, step: int) -> None:
        """Until this stage has logged the step."""
        self.wait(lambda: self.reached() >= step)

    def finish(self) -> None:
        assert self.process and self.process.wait(LIMIT) == 0, self.log[-3000:]

    def reached(self) -> int:
        """The last step that was logged."""
        return max(curve(self.root, self.stage), default=0)

    def first_reached(self) -> int:
        """The last step that the first attempt logged, whether it counts or was done again."""
        first = min(self.root.glob(f"artifacts/{self.stage}/*/work/spool/*.jsonl"))
        return max(event["step"] for _, event in whole_lines(first) if event and event["kind"] == "metrics")

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
    row.metrics = run.lost_metrics()
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
