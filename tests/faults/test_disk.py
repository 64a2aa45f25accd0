"""A disk that fills up: the run ends with one line that names the place; with room again the same command goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import EVERY, LIMIT, Fault, Row, settle

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


@pytest.fixture
def mounted() -> Iterator[Callable[[Path, str], None]]:
    """`mounted(folder, size)`: a file system of its own there, in memory; skips without the right to mount."""
    folders: list[Path] = []

    def mount(folder: Path, size: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount a file system (root): {done.stderr.strip()}")
        folders.append(folder)

    yield mount
    for folder in folders:
        subprocess.run(["umount", "--lazy", folder], check=True)


def ended_in_one_line(run: Fault, told: str) -> None:
    assert run.process and run.process.wait(LIMIT) == 2, run.log[-3000:]
    (line,) = [line for line in run.log.splitlines() if line.startswith("error: ")]
    assert re.search(told, line), line
    assert "Traceback" not in run.log


def test_disk_full_in_a_checkpoint(
    fault: Callable[..., Fault], row: Row, mounted: Callable[[Path, str], None], tmp_path: Path
) -> None:
    row.fault = "disk full in a checkpoint"
    row.how = "ballast on a tmpfs that leaves less than a rank's file, removed after the end; the command again"
    mounted(tmp_path / "disk", "256m")
    run = fault(root=tmp_path / "disk" / "runs")
    run.start()
    run.wait_step(EVERY + 2)
    ballast = tmp_path / "disk" / "ballast"
    file_of_a_rank = min(path.stat().st_size for path in run.checkpoints()[0].glob("rank-*.safetensors"))
    with open(ballast, "wb") as file:  # images and the tracker's data base take of what is left
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(ballast.parent).free - file_of_a_rank + 10_000)
    at = time.time()
    ended_in_one_line(run, "checkpoint .* cannot be written: No space left on device .*start again")
    reached = run.reached()
    ballast.unlink()
    run.start()
    run.finish()
    settle(run, row, at, reached, most=EVERY + 2)  # a step or two were done while it was written


def test_disk_full_in_encoding(fault: Callable[..., Fault], row: Row, mounted: Callable[[Path, str], None]) -> None:
    row.fault = "disk full in encoding"
    row.how = "the pool of latents on a tmpfs with room for two of six shards, then for all; the command again"
    run = fault(verb="encode")
    mounted(run.root / "latents", "600k")
    run.start()
    ended_in_one_line(run, "latents/.*No space left on device; make room")
    at = time.time()
    left = {path.name for path in run.root.glob("latents/*")}
    assert left and not [name for name in left if name.endswith(".tmp")]
    subprocess.run(["mount", "-o", "remount,size=64m", run.root / "latents"], check=True)
    run.start()
    run.finish()
    row.seconds.append(time.time() - at)
    want, got = ({p.name: p.read_bytes() for p in (r / "latents").iterdir()} for r in (run.whole, run.root))
    assert got == want and left < set(got)
    row.end = "equal"
