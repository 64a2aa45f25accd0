"""Ranks that die or hang, and the command itself killed: training goes on from its last checkpoint, bit for bit."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable

import psutil
import pytest

from .conftest import Fault, Row, settle

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


def test_worker_killed(fault: Callable[..., Fault], row: Row) -> None:
    """SIGKILL of one rank; the others are started again with it, by the same command that runs on."""
    row.fault, row.how = "worker killed", "SIGKILL of one of two ranks"
    run = fault()
    run.begin()
    victim = random.choice(run.workers())
    victim.kill()
    at, reached = time.time(), run.reached()
    run.finish()
    assert "a rank died" in run.log
    settle(run, row, at, reached)


def test_worker_stopped(fault: Callable[..., Fault], row: Row) -> None:
    """SIGSTOP: the rank is there and does nothing; named after half of `cluster.collective_timeout`, a minute here, and
    given up after all of it. Ray Train then waits for half a minute that it take its process group down."""
    row.fault, row.how = "worker hangs", "SIGSTOP of one of two ranks, `cluster.collective_timeout=60`"
    run = fault("cluster.collective_timeout=60")
    run.begin()
    victim = random.choice(run.workers())
    victim.suspend()
    at, reached = time.time(), run.reached()
    run.finish()
    assert re.search(r"no step for \d+ s while .*; hangs in ", run.log) and "a rank died" in run.log
    gone, _ = psutil.wait_procs([victim], 10)
    assert gone, "the stopped rank was left behind"
    settle(run, row, at, reached)


def test_driver_killed(fault: Callable[..., Fault], row: Row) -> None:
    """SIGKILL of the command alone: what it started ends without it, and the same command goes on."""
    row.fault, row.how = "driver killed", "SIGKILL of the command, typed again"
    run = fault()
    run.begin()
    assert run.process
    left = psutil.Process(run.process.pid).children(recursive=True)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait(30)
    at = time.time()
    run.start()
    run.finish()
    reached = run.first_reached()  # its ranks went on until they saw that they were left
    _, alive = psutil.wait_procs(left, 60)
    assert not alive, [p.name() for p in alive]
    settle(run, row, at, reached)
