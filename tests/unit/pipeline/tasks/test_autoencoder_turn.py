"""Latents that are made smaller and turned before they are decoded: the same on all ranks, some of the steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models import posterior, registry
from pipeline import config as configs
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.tasks import autoencoder_loss

CONFIG = """\
run: {name: x}
data: {source: {kind: digits}, size: 64, channels: 1}
autoencoder: {model: {kind: kl, width: 8, multipliers: [1, 2], groups: 4}, training: {steps: 4}}
diffusion: {training: {steps: 4}}
"""


def config(tmp_path: Path, *overrides: str) -> Config:
    (tmp_path / "x.yaml").write_text(CONFIG)
    return configs.load(tmp_path / "x.yaml", overrides)


def test_a_share_of_the_steps_turns_as_the_position_says(tmp_path: Path) -> None:
    chosen = config(tmp_path, "autoencoder.loss.equivariance=0.5")
    found = [autoencoder_loss.turn(chosen, 8 * i, 32, 2) for i in range(2000)]
    assert found == [autoencoder_loss.turn(chosen, 8 * i, 32, 2) for i in range(2000)]
    turns = [one for one in found if one]
    assert len(turns) == pytest.approx(1000, abs=80)
    assert {side for side, _ in turns} == set(range(8, 33)) and {quarters for _, quarters in turns} == {0, 1, 2, 3}
    assert autoencoder_loss.turn(config(tmp_path), 0, 32, 2) is None
    assert "equivariance" not in autoencoder_loss.recipe(config(tmp_path))  # older artifacts stay
    assert autoencoder_loss.recipe(chosen)["equivariance"] == 0.5
    small = {autoencoder_loss.turn(chosen, 8 * i, 8, 4) for i in range(200)} - {None}
    assert min(side for side, _ in small if side) == 4  # 16 pixels
    for overrides in (["autoencoder.model.kind=vq"], ["autoencoder.loss.adversarial={weight: 1}"]):
        with pytest.raises(UserError, match=r"`loss\.equivariance` is for model kind kl"):
            config(tmp_path, "autoencoder.loss.equivariance=0.5", *overrides)


def test_latents_are_turned_between_encoder_and_decoder() -> None:
    model = registry.build("autoencoders", {"kind": "kl", "width": 8, "multipliers": [1, 2], "groups": 4}, channels=1)
    x, noise = torch.randn(2, 1, 16, 16), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        reconstruction, moments = model(x, noise, (4, 1))
        z = posterior.turned(posterior.sample(moments, noise), 4, 1)
        assert z.shape == (2, 4, 4, 4) and torch.equal(reconstruction, model.decode(z))
        assert torch.equal(model(x, noise)[0], model(x, noise, (8, 0))[0])
    corner = torch.zeros(1, 1, 8, 8)
    corner[..., :4, :4] = 1
    assert torch.equal(posterior.turned(corner, 8, 1), torch.rot90(corner, 1, (2, 3)))
    small = posterior.turned(corner, 4, 1)[0, 0]  # up and left goes down and left
    assert small[3, 0] == 1 and small[0, 0] == small[0, 3] == small[3, 3] == 0
