"""The MLflow server goes away: training does not notice, and the tracker has everything in the end."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.tracking.server import free_port, server
from tests.integration.test_ray import ROOT, curve

from .conftest import STEPS, Fault, Row

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

AWAY = 60.0  # seconds


def test_tracker_down_for_a_minute(fault: Callable[..., Fault], row: Row, tmp_path: Path) -> None:
    row.fault = "MLflow down for a minute"
    row.how = f"the server ended while the autoencoder trains and started again {AWAY:.0f} s later"
    port = free_port(5600)
    uri = f"http://127.0.0.1:{port}"
    run = fault(f"tracking.uri={uri}", "tracking.deadline=300")
    shutil.rmtree(run.root)  # all stages: some of each kind are done while the server is away
    with server(tmp_path / "tracker", port):
        run.start()
        run.wait(lambda: max(curve(run.root, "autoencoder"), default=0) >= 5)
    gone = time.time()
    run.wait(lambda: run.reached() > STEPS // 2 or time.time() - gone > AWAY)
    ranks = run.workers()
    for rank in ranks:  # else a fast machine is done within the minute
        rank.suspend()
    run.wait(lambda: time.time() - gone > AWAY)
    with server(tmp_path / "tracker", port):
        for rank in ranks:
            rank.resume()
        run.finish()
        row.metrics = run.lost_metrics(uri)
    assert "not sent yet" not in run.log and row.metrics == 0
    row.end = run.equal()


def test_tracker_down_for_the_whole_job(fault: Callable[..., Fault], row: Row, tmp_path: Path) -> None:
    row.fault, row.how = "MLflow down for the whole job", "no server; started after the end, then `ldm mlflow sync`"
    port = free_port(5600)
    uri = f"http://127.0.0.1:{port}"
    run = fault(f"tracking.uri={uri}", "tracking.deadline=5")
    run.start()
    run.finish()
    assert "lines not sent yet" in run.log and "`ldm mlflow sync` sends them" in run.log
    with server(tmp_path / "tracker", port):
        began = time.time()
        command = [sys.executable, "-m", "jobs.mlflow", "sync", "--root", str(run.root), "--uri", uri]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and ", 0 left" in done.stdout, done.stdout + done.stderr
        row.seconds.append(time.time() - began)
        row.metrics = run.lost_metrics(uri)
    assert row.metrics == 0
    row.end = run.equal()
