"""Text, sound, clips and images of many bands: both trained stages killed and resumed on two ranks, bit for bit, and
gone on with by one rank, within 1e-5. Ranks are processes of the training loop alone, as those of
tests/integration/test_resume.py, which does the same with images at each ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration import test_resume
from tests.integration.conftest import train as train

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
KILLED, ZERO = 4, 2  # the step, behind the checkpoint of step 3; the ZeRO stage
MODALITIES = ("text", "sound", "clips", "rasters")


@pytest.fixture(scope="module", params=MODALITIES)
def made(request: pytest.FixtureRequest, train: Callable[[list[dict[str, Any]]], None], tmp_path_factory: Any) -> Path:
    """The runs of a modality."""
    root = tmp_path_factory.mktemp(request.param)
    sizes = [f"{stage}.training.batch_size={test_resume.BATCH}" for stage in ("autoencoder", "diffusion")]
    common = {"root": str(root), "stage": ZERO, "accumulation": 1, "modality": request.param, "overrides": sizes}
    runs = [{**common, "kind": "prepare", "subject": "autoencoder", "out": str(root / "prepare"), "world": 1}]
    for stage in ("autoencoder", "diffusion"):
        for name, folder, more in (
            ("whole", "whole", {"world": 2}),
            ("killed", "killed", {"world": 2, "kill": KILLED, "kill_rank": 1, "whole": 3 * test_resume.BATCH}),
            ("one", "one", {"world": 1, "seed": 1, "copy": str(root / f"{stage}-killed-files")}),
            ("resumed", "killed", {"world": 2, "seed": 1}),
        ):
            files = {"out": str(root / f"{stage}-{name}"), "folder": str(root / f"{stage}-{folder}-files")}
            training = {"training": {"steps": test_resume.STEPS, "save_every": 3}}
            runs.append({**common, **training, "subject": stage, **files, **more})
    train(runs)
    return root


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_killed_and_resumed(made: Path, stage: str) -> None:
    whole, resumed = (test_resume.steps(made, f"{stage}-{name}") for name in ("whole", "resumed"))
    assert min(resumed) <= KILLED * test_resume.BATCH and max(resumed) == (test_resume.STEPS - 1) * test_resume.BATCH
    assert all(whole[position] == row for position, row in resumed.items())
    ends = [test_resume.end(made, f"{stage}-{name}") for name in ("whole", "resumed")]
    assert ends[1]["resumed_from"] == 3 * test_resume.BATCH
    assert all(ends[0][what] == ends[1][what] for what in ("live", "ema", "snapshots"))
    test_resume.assert_close(made, f"{stage}-one", f"{stage}-whole")
