"""Two commands that want the same artifact: one writes it, the other is told so, or waits and finds it done."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.integration.test_ray import start

from .conftest import LIMIT, Fault, Row

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


def test_two_jobs(fault: Callable[..., Fault], row: Row) -> None:
    row.fault = "two jobs on one artifact"
    row.how, row.times = "the command twice at once; a pipeline of another name; with `--if-busy wait`", 3
    run = fault()
    run.start()
    run.wait(lambda: list(run.root.glob("artifacts/diffusion/*/work/lease/*.json")))
    others = []
    rivals = {"same": (), "other": ("run.name=other",), "waits": ("run.name=other", "--if-busy=wait")}
    for name, options in rivals.items():
        config = run.config.with_name(f"{name}.yaml")
        config.write_text(run.config.read_text())
        others.append((start("diffusion", config, run.root, *options), config))
        if name != "waits":
            assert others[-1][0].wait(LIMIT) == 2, config.with_suffix(".log").read_text()
    assert run.process and run.process.poll() is None, "over before the others had their answer"
    for (_, config), place in zip(others[:2], ("pipelines", "artifacts/diffusion"), strict=True):
        said = config.with_suffix(".log").read_text()
        assert "Traceback" not in said
        assert re.search(rf"error: .*{place}/.*being written by process {run.process.pid} on ", said), said
    run.finish()
    assert others[2][0].wait(LIMIT) == 0, others[2][1].with_suffix(".log").read_text()[-3000:]
    row.metrics = run.lost_metrics()
    assert row.metrics == 0
    row.end = run.equal()
