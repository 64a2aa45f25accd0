"""The losses of a tiny run of both stages, step by step, against a file: a refactor leaves them equal.

Where a change is meant to change them: delete tests/integration/golden.json, run this test (it writes the file, and
fails), look at the difference, commit it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden.json"
TOLERANCE = 1e-5  # relative: another CPU may round differently, another order or loss is far off


def losses(root: Path, stage: str) -> list[float]:
    spool = next(root.glob(f"artifacts/{stage}/*/work/spool/*.jsonl"))
    events = [json.loads(line) for line in spool.read_text().splitlines()]
    values = [event["values"] for event in events if event["kind"] == "metrics"]
    return [point[f"{stage}/train_loss"] for point in values if f"{stage}/train_loss" in point]


def test_losses_are_those_of_the_file(small: Any) -> None:
    steps = [f"{stage}.training.{key}" for stage in ("autoencoder", "diffusion") for key in ("steps=8", "log_every=1")]
    assert small.run("diffusion", *steps).code == 0
    found = {stage: losses(small.root, stage) for stage in ("autoencoder", "diffusion")}
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
        pytest.fail(f"{GOLDEN} was missing and has been written: look at it, and commit it")
    want = json.loads(GOLDEN.read_text())
    for stage, values in found.items():
        assert len(values) == 8
        assert values == pytest.approx(want[stage], rel=TOLERANCE)
