"""Weights to begin with: those that were planned with, of a backbone that takes the same, or nothing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models import registry
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.networks import save_weights
from pipeline.tasks import begin

BACKBONE = {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 2}


def config(first: Path, **condition: Any) -> Config:
    training = {"steps": 1, "batch_size": 2}
    return Config.model_validate(
        {
            "run": {"name": "told", "root": str(first.parent)},
            "data": {"source": {"kind": "table", "path": "images.csv", "label": "class"}, "size": 16},
            "autoencoder": {"model": {"kind": "kl", "width": 8}, "training": training},
            "diffusion": {
                "backbone": BACKBONE,
                "condition": condition,
                "training": {**training, "init_from": str(first)},
            },
        }
    )


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """Weights of a backbone that takes one channel, and whether it is told, beside the latents."""
    torch.manual_seed(0)
    backbone: Any = registry.build("backbones", BACKBONE, channels=2, size=4, beside=2)
    file = tmp_path / "weights.safetensors"
    save_weights(file, {f"backbone.{name}": value for name, value in backbone.state_dict().items()})
    return file


def test_weights_that_changed_since_the_plan_are_refused(first: Path) -> None:
    made = config(first)
    recipe = {"training": begin.training_recipe(made, "diffusion")}
    assert begin.planned_weights(made, "diffusion", recipe) == first
    assert begin.planned_weights(made, "autoencoder", recipe) is None
    save_weights(first, {"other": torch.zeros(1)})
    with pytest.raises(UserError, match=r"`diffusion.training.init_from`: .* has changed since; run again"):
        begin.planned_weights(made, "diffusion", recipe)


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_maps_of_any_channels_fit(first: Path, channels: int) -> None:
    begin.check(config(first, spatial={"mask": {"channels": channels}} if channels else {}), 2, 4)
    with pytest.raises(UserError, match="another backbone"):
        begin.check(config(first, spatial={"mask": {"channels": 1}}), 3, 4)
