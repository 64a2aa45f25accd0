"""The pipeline through real Ray and DeepSpeed, as a user starts it: killed and started again, stopped, on one worker.

Each run is `python -m jobs.<verb>` in a process of its own. Curves are compared as they were spooled, every step.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
STEPS = 16
SMALL = f"""\
run: {{name: small}}
data:
  source: {{kind: digits}}
  size: 16
  channels: 1
  shard_size: 400
autoencoder:
  model: {{kind: kl, width: 8, multipliers: [1, 2], blocks: 1, latent_channels: 2, groups: 4, attention: false}}
  training: {{batch_size: 32, steps: {STEPS}, half_lives: [200], log_every: 1, save_every: 4,
             validate_every: 8, preview_every: 8, micro_batch: 8}}
diffusion:
  backbone: {{kind: dit, width: 32, depth: 2, heads: 2, patch: 2}}
  training: {{batch_size: 32, steps: {STEPS}, half_lives: [200], log_every: 1, save_every: 4,
             validate_every: 8, preview_every: 8}}
cluster: {{workers: 2, threads: 1}}
"""


def start(verb: str, config: Path, root: Path, *overrides: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-u", "-m", f"jobs.{verb}", "--config", str(config), f"run.root={root}", *overrides]
    with open(config.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def finish(process: subprocess.Popen[bytes], config: Path) -> None:
    assert process.wait(400) == 0, config.with_suffix(".log").read_text()[-3000:]


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process and all that it started, Ray's daemons and workers among them."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def kill_all(process: subprocess.Popen[bytes]) -> None:
    members = family(process)
    for member in members:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(members, 30)
    process.wait(30)


def curve(root: Path, stage: str, key: str = "train_loss") -> dict[int, list[float]]:
    """step -> values spooled for it, by all attempts."""
    found: dict[int, list[float]] = {}
    for path in sorted(root.glob(f"artifacts/{stage}/*/work/spool/*.jsonl")):
        for line in path.read_text().splitlines():
            event = json.loads(line) if line.endswith("}") else {}
            if event.get("kind") == "metrics" and f"{stage}/{key}" in event["values"]:
                found.setdefault(event["step"], []).append(event["values"][f"{stage}/{key}"])
    return found


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes], config: Path) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, config.with_suffix(".log").read_text()[-3000:]
        assert time.monotonic() < deadline, "nothing happened for 300 s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> Path:
    root = config.parent / "undisturbed"
    finish(start("diffusion", config, root), config)
    return root


def test_killed_and_started_again_gives_the_same_losses(config: Path, undisturbed: Path) -> None:
    """SIGKILL of the whole process tree, once in each trained stage; the same command goes on, bit for bit."""
    root = config.parent / "killed"
    for stage, at in (("autoencoder", 6), ("diffusion", 9)):
        process = start("diffusion", config, root)
        wait_for(lambda stage=stage, at=at: max(curve(root, stage), default=0) >= at, process, config)  # type: ignore[misc]
        kill_all(process)
        assert max(curve(root, stage)) < STEPS
    finish(start("diffusion", config, root), config)
    for stage in ("autoencoder", "diffusion"):
        want, got = curve(undisturbed, stage), curve(root, stage)
        assert sorted(got) == list(range(1, STEPS + 1)) == sorted(want)
        assert all(len(values) == 1 for values in got.values())  # no step is logged twice
        assert got == want
        assert curve(root, stage, "val_loss") == curve(undisturbed, stage, "val_loss")


def test_stop_saves_and_leaves_no_process(config: Path) -> None:
    """Ctrl-C: exit code 130, a checkpoint of that moment, nothing left running."""
    root = config.parent / "stopped"
    process = start(
        "autoencoder", config, root, "autoencoder.training.steps=100000", "autoencoder.training.save_every=100000"
    )
    wait_for(lambda: max(curve(root, "autoencoder"), default=0) >= 3, process, config)
    members = family(process)
    assert len(members) > 5
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(120) == 130, config.with_suffix(".log").read_text()[-3000:]
    _, alive = psutil.wait_procs(members, 20)
    assert [p.name() for p in alive] == []
    saved = list(root.glob("artifacts/autoencoder/*/work/checkpoints/*/manifest.json"))
    assert len(saved) == 2  # the one at the start, and the one of the stop


def test_one_worker_encodes_the_same_bytes(config: Path, undisturbed: Path) -> None:
    """The latents of 1 and of 2 workers are the same files."""
    root = config.parent / "one-worker"
    pinned = next(undisturbed.glob("artifacts/autoencoder/*/manifest.json")).parent
    finish(start("encode", config, root, f"autoencoder.from={pinned}", "cluster.workers=1"), config)
    want, got = ({p.name: p.read_bytes() for p in (r / "latents").glob("*.tar")} for r in (undisturbed, root))
    assert want and got == want
