"""What is known before anything runs, and said: steps that are too few for what is asked, averages of nothing, fp16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, load
from pipeline.errors import UserError
from pipeline.planning.doubts import doubts
from pipeline.planning.fits import needs_gpu
from pipeline.stages import precision

ROOT = Path(__file__).parents[4]


def config(**training: Any) -> Config:
    given = {"steps": 60, "batch_size": 10, "half_lives": [50], **training}
    sections = {
        "run": {"name": "x"},
        "data": {"source": {"kind": "digits"}},
        "autoencoder": {"training": {"steps": 1000, "half_lives": [1000]}},
    }
    return Config.model_validate({**sections, "diffusion": {"training": given}})


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"warmup": 500}, "warmup`: 500 of 60 steps: the learning rate never gets to stay"),
        ({"warmup": 60}, "warmup`: 60 of 60 steps"),
        ({"warmup": 50, "schedule": "wsd", "decay": 0.5}, "warmup`: 50 steps of warm-up and 50% of 60 that fall"),
        ({"decay": 0.5}, "decay`: has no effect with `schedule: constant`"),
        ({"save_every": 61}, "save_every`: 61 of 60 steps: no checkpoint before the end"),
        ({"validate_every": 100}, "validate_every`: 100 of 60 steps: no validation before the end"),
        ({"preview_every": 100}, "preview_every`: 100 of 60"),
        ({"log_every": 100}, "log_every`: 100 of 60"),
        ({"average_lengths": [0.1], "snapshot_every": 601}, "snapshot_every`: 601 of 600 samples"),
        ({"skip": [[600, 700]]}, "skip`: [600, 700) begins after the last of 600 samples"),
        ({"profile": {"from": 61}}, "profile`: from step 61 of 60: there is no trace"),
        ({"half_lives": [600]}, "half_lives`: 600 for a training of 600 samples: 50% of the average"),
    ],
)  # fmt: skip
def test_each_is_told_with_its_key(training: dict[str, Any], said: str) -> None:
    (line,) = doubts(config(**training))
    assert line.startswith(f"`diffusion.training.{said}")


def test_what_nobody_asked_for_is_not_held_against_a_short_training() -> None:
    assert doubts(config()) == []
    assert doubts(config(warmup=30, schedule="wsd", decay=0.5)) == []
    assert doubts(config(save_every=60)) == []
    assert doubts(config(half_lives=[600], init_from="x")) == []
    whole = config(half_lives=[50], log_every=6).model_dump(
        by_alias=True
    )  # as a past run's config, of which `ldm distil` makes its own
    assert [line for line in doubts(Config.model_validate(whole)) if "decay" in line] == []


@pytest.mark.parametrize("file", sorted((ROOT / "jobs/configs").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_raise_none(file: Path) -> None:
    assert doubts(load(file)) == []


class Machine:
    def __init__(self, has_gpu: bool) -> None:
        self.has_gpu, self.asked = has_gpu, 0

    def map(self, *_: Any, **__: Any) -> list[bool]:
        self.asked += 1
        return [self.has_gpu]


def test_fp16_without_a_gpu_is_refused_before_anything_runs() -> None:
    cpu, gpu, made = Machine(has_gpu=False), Machine(has_gpu=True), config(precision="fp16")
    with pytest.raises(UserError, match=r"`diffusion.training.precision`: fp16 needs a GPU"):
        precision.check_precision(made, cpu, ["diffusion"])  # type: ignore[arg-type]
    precision.check_precision(made, gpu, ["diffusion"])  # type: ignore[arg-type]
    asked = cpu.asked
    precision.check_precision(made, cpu, ["evaluate"])  # type: ignore[arg-type]
    precision.check_precision(config(), cpu, ["diffusion"])  # type: ignore[arg-type]
    assert cpu.asked == asked


def test_validate_warns_of_it_on_a_machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "fp16 needs a GPU" in needs_gpu(config(precision="fp16"))[0]
    assert needs_gpu(config()) == []
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    assert needs_gpu(config(precision="fp16")) == []
