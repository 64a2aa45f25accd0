"""Seconds by part of a step, the share of the machine, a trace of some steps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.schema.training import Profile
from pipeline.training import meter
from pipeline.training.meter import Meter
from pipeline.training.profile import Tracer
from pipeline.training.ranks import open_ranks

CPU = torch.device("cpu")


def test_parts_rates_and_shares_are_of_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    known: list[float] = []
    clock = Meter(CPU, peak=1e12, flops=lambda: known[0] if known else None)
    for _ in range(4):
        with clock.part("data"):
            now[0] += 1
        with clock.part("step"):
            now[0] += 3
        clock.add("all_reduce", 0.5)
        clock.count(10)
        with clock.pause(), clock.part("checkpoint"):
            now[0] += 2
    first = clock.read()
    assert first["images_per_second"] == pytest.approx(40 / 16)  # without checkpoints
    assert [first[f"efficiency/{part}_ms"] for part in meter.PARTS] == [1000, 3000, 500, 2000]
    assert "efficiency/tflops" not in first and first["efficiency/memory_gb"] > 0.01
    known.append(2e11)
    now[0] += 4
    clock.count(40)
    second = clock.read()
    assert second["images_per_second"] == pytest.approx(10) and second["efficiency/data_ms"] == 0
    assert second["efficiency/tflops"] == pytest.approx(2.0) and second["efficiency/utilisation"] == pytest.approx(2.0)
    whole = clock.summary()
    assert whole["images_per_second"] == pytest.approx(80 / 20) and whole["efficiency/data_ms"] == pytest.approx(800)
    assert meter.line("diffusion", whole, "image").startswith(
        "diffusion: 4 images/s, 0.8 TFLOP/s (80% of what large products"
    )
    assert meter.line("diffusion", whole, "sound").startswith("diffusion: 4 sounds/s")


def test_curves_of_the_machine_have_mlflows_names() -> None:
    found = Meter(CPU, system=True).read()
    assert 0 < found["system/system_memory_usage_percentage"] < 100 and "system/cpu_utilization_percentage" in found
    assert not any(key.startswith("system/") for key in Meter(CPU).read())


def test_the_rate_of_products_is_about_what_a_product_takes() -> None:
    rate = meter.product_rate(open_ranks(), "fp32")
    a = torch.ones(512, 512)
    with meter.clock(CPU) as seconds:
        for _ in range(8):
            a @ a
    assert 0.05 * rate < 8 * 2 * 512**3 / seconds() < 20 * rate


class Log:
    def __init__(self) -> None:
        self.files: list[tuple[Path, str]] = []

    def file(self, path: Any, artifact_path: str = "") -> None:
        self.files.append((Path(path), artifact_path))


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([1, 2, 3, 4, 5], [2, 3]),
        ([1, 2, 40, 41], [2]),  # steps in between are left out (`training.skip`): the trace ends
        ([1, 2, 3, 1, 40], [2, 3]),  # a roll-back
        ([3, 4, 5], []),  # a training that goes on in the middle of them
    ],
)
def test_a_trace_holds_the_steps_that_were_asked_for(tmp_path: Path, steps: list[int], kept: list[int]) -> None:
    log = Log()
    tracer = Tracer(Profile.model_validate({"from": 2, "steps": 2}), tmp_path / "profile", log)
    for step in steps:
        tracer.before(step)
        with torch.profiler.record_function(f"step {step}"):
            torch.ones(8, 8) @ torch.ones(8, 8)
    tracer.close(steps[-1])
    if not kept:
        assert not log.files
        return
    ((path, place),) = log.files
    assert (path.name, place) == (f"steps-2-{kept[-1]}.json.gz", "profile")
    names = {event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
    assert "aten::mm" in names and {n for n in names if str(n).startswith("step ")} == {f"step {k}" for k in kept}
