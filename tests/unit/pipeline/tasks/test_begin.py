"""Weights to begin with: those that were planned with, of a backbone that takes the same, or nothing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models import registry
from pipeline.config import Config
from pipeline.data.text_encoders import identified
from pipeline.errors import UserError
from pipeline.files import write_json
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
                "backbone": {**BACKBONE, **({"tokens": "cross"} if "caption" in condition else {})},
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
    begin.check(config(first, spatial={"mask": {"channels": channels}} if channels else {}), 2, (4, 4))
    with pytest.raises(UserError, match="another backbone"):
        begin.check(config(first, spatial={"mask": {"channels": 1}}), 3, (4, 4))


def test_captions_of_another_encoder_of_the_kind_are_refused_beforehand(first: Path, tmp_path: Path) -> None:
    for name, value in (("read", 0.0), ("other", 1.0)):
        save_weights(tmp_path / name / "model.safetensors", {"weight": torch.full((1,), value)})
        write_json(tmp_path / name / "config.json", {"hidden_size": 8})
    encoders = [{"kind": "transformers", "path": str(tmp_path / name)} for name in ("read", "other")]
    caption = {"tokens": 8, "encoder": identified(encoders[0])}
    write_json(first.parent / "model.json", {"backbone": BACKBONE, "condition": {"caption": caption}})
    begin.check(config(first, caption={"encoder": encoders[0]}), 2, (4, 4))
    with pytest.raises(UserError, match="caption: it is read by another encoder there"):
        begin.check(config(first, caption={"encoder": encoders[1]}), 2, (4, 4))
