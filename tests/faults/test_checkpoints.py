"""Killed while a checkpoint is written, and checkpoints that are damaged: the newest whole one is taken."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil
import pytest

from tests.integration.test_ray import kill_all

from .conftest import BATCH, EVERY, STEPS, Fault, Row, settle

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

KILLS = 20


def test_killed_while_writing(fault: Callable[..., Fault], row: Row) -> None:
    """SIGKILL of a rank at random moments between a checkpoint's first sign and its last, as long as the first three,
    which are left alone, take (their median)."""
    row.fault, row.times = "killed while writing a checkpoint", KILLS
    chance = random.Random()
    run = fault("diffusion.training.save_every=1", f"cluster.max_failures={KILLS}")
    run.start()
    landed, moments = Counter[str](), []
    gone, took = set[int](), []
    for kill in range(KILLS):
        run.wait(lambda gone=gone: len(ranks_but(run, gone)) == 2)  # type: ignore[misc]
        victim = chance.choice(ranks_but(run, gone))
        while len(took) < 3:
            folder = appears(run)
            since = time.monotonic()
            run.wait((folder / "manifest.json").exists, poll=0.0)
            took.append(time.monotonic() - since)
        folder = appears(run)
        time.sleep(chance.uniform(0, median(took)))
        gone = gone | {rank.pid for rank in run.workers()}
        victim.kill()
        at = time.time()
        landed[stage_of(folder)] += 1
        run.wait(lambda kill=kill: run.log.count("a rank died") > kill)  # type: ignore[misc]
        moments.append((at, run.reached()))
        assert run.reached() < STEPS, f"the stage was over before kill {kill}"
        row.again.append(run.undone())
    run.finish()
    found = ", ".join(f"{count} {what}" for what, count in sorted(landed.items()))
    row.how = (
        f"SIGKILL of a random rank at a random moment of the {median(took):.2f} s of a write, the first one of each "
        f"start, so that many starts end without a new step (found: {found})"
    )
    row.seconds = [run.recovered(at, reached) for at, reached in moments]
    assert all(0 <= again <= 2 for again in row.again), row.again  # a step is done while the one before is written
    row.end = run.equal()


def appears(run: Fault) -> Path:
    """Wait for the next checkpoint's folder."""
    before = names(run)
    run.wait(lambda: names(run) - before, poll=0.0)
    return max(names(run) - before)


def names(run: Fault) -> set[Path]:
    """The folders of all checkpoints, whole or not."""
    return {path for folder in run.root.glob("artifacts/diffusion/*/work/checkpoints") for path in folder.iterdir()}


def ranks_but(run: Fault, gone: set[int]) -> list[psutil.Process]:
    """The ranks of this attempt. A process may be older than it: Ray gives ranks one that waits for work, if it has."""
    return [process for process in run.workers() if process.pid not in gone]


def stage_of(folder: Path) -> str:
    """How far the writing of a checkpoint had come."""
    if (folder / "manifest.json").exists():
        return "whole"
    tables = len(list(folder.glob("rank-*.json")))
    return f"with {len(list(folder.glob('rank-*.safetensors')))} files, {tables} tables"


def position(checkpoint: Path) -> int:
    """The step at which it was made."""
    return int(checkpoint.name.split("-")[1]) // BATCH


@pytest.fixture(scope="module")
def half_way(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that was killed with everything after its second checkpoint."""
    folder = tmp_path_factory.mktemp("half") / "runs"
    run = Fault.after(whole, folder)
    run.start()
    run.wait_step(2 * EVERY + 3)
    run.wait(lambda: run.checkpoints() and position(run.checkpoints()[0]) >= 2 * EVERY)
    kill_all(run.process)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("damage", ["bit", "truncated", "missing"])
def test_newest_damaged(fault: Callable[..., Fault], row: Row, half_way: Path, damage: str) -> None:
    """One interval more is done again, and the log names what was wrong."""
    run = fault()
    shutil.rmtree(run.root)
    shutil.copytree(half_way, run.root)
    newest = run.checkpoints()[0]
    saved = position(newest)
    file = newest / "rank-00001-of-00002.safetensors"
    if damage == "bit":
        row.fault, row.how, told = "newest checkpoint: a bit", "a bit of a rank's file flipped", "wrong digest"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    elif damage == "truncated":
        row.fault, row.how, told = "newest checkpoint: cut", "a rank's file truncated to half", "bytes instead of"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        row.fault, row.how, told = "newest checkpoint: a file gone", "a rank's file removed", "missing"
        file.unlink()
    at, reached = time.time(), run.reached()
    assert saved <= reached < STEPS
    run.start()
    run.finish()
    assert f"{newest.name} is not whole ({file.name}: " in run.log and told in run.log, run.log[-3000:]
    settle(run, row, at, reached, most=reached - saved + EVERY)
