"""Kinds by file name, options to configs, errors that name field and nearest; a backbone dropped in as one file."""

from __future__ import annotations

import sys

import pytest
import torch

import models.backbones
from models import registry
from models.diffusion import objectives
from models.diffusion.denoiser import build_network
from models.diffusion.process import RectifiedFlow

DROPPED = '''
"""A backbone in one file: two convolutions that the time and the condition shift."""
from dataclasses import dataclass

from torch import nn

from models.layers import TimeEmbedding


@dataclass(frozen=True)
class Config:
    width: int = 16  # channels between the two convolutions
    limit: float | None = None  # bound of the hidden values


class Model(nn.Module):
    def __init__(self, config, channels, size):
        super().__init__()
        self.condition_width, self.limit = config.width, config.limit
        self.time = TimeEmbedding(config.width)
        self.first = nn.Conv2d(channels, config.width, 3, padding=1)
        self.last = nn.Conv2d(config.width, channels, 3, padding=1)

    def forward(self, x, t, condition):
        shift = self.time(t) + condition.vector
        return self.last((self.first(x) + shift[:, :, None, None]).clamp(0, self.limit))
'''


@pytest.fixture
def dropped(tmp_path, monkeypatch):
    """A file on the path of models.backbones, as if it lay in the folder; gone afterwards."""
    (tmp_path / "shifted_convs.py").write_text(DROPPED)
    monkeypatch.setattr(models.backbones, "__path__", [*models.backbones.__path__, str(tmp_path)])
    yield "shifted_convs"
    sys.modules.pop("models.backbones.shifted_convs", None)


def test_a_dropped_file_trains_two_steps_by_its_kind(dropped):
    assert len(DROPPED.strip().splitlines()) <= 60
    assert dropped in registry.kinds("backbones")
    assert registry.make_config("backbones", {"kind": dropped, "limit": None}).limit is None
    assert registry.make_config("backbones", {"kind": dropped, "limit": 2}).limit == 2.0
    torch.manual_seed(0)
    network = build_network({"kind": dropped, "width": 24}, "class", channels=4, size=8, classes=3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    x0, eps, t = torch.randn(6, 4, 8, 8), torch.randn(6, 4, 8, 8), torch.linspace(0.1, 0.9, 6)
    values = []
    for _ in range(3):
        condition = {"class": torch.tensor([0, 1, 2, 3, 0, 1])}
        value = objectives.loss(network, x0, eps, t, condition, RectifiedFlow(), "velocity").mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[2] < values[1] < values[0]
    with pytest.raises(ValueError, match=r"activation_checkpointing.*shifted_convs"):
        build_network({"kind": dropped}, "none", 4, 8, activation_checkpointing=True)
    with pytest.raises(ValueError, match="kind: shifted_convs takes no channels beside the latents"):
        build_network({"kind": dropped}, "none", 4, 8, spatial={"mask": {"channels": 1}})


def test_kinds_are_the_files():
    assert "dit" in registry.kinds("backbones")
    assert "kl" in registry.kinds("autoencoders")


def test_preset_then_overrides():
    config = registry.make_config("backbones", {"kind": "dit", "preset": "dit-s/2", "qk_norm": True, "mlp_ratio": 3})
    assert (config.width, config.depth, config.heads, config.patch) == (384, 12, 6, 2)
    assert config.qk_norm is True and config.mlp_ratio == 3.0 and isinstance(config.mlp_ratio, float)
    assert registry.make_config("autoencoders", {"kind": "kl", "multipliers": [1, 2]}).multipliers == (1, 2)


def test_resolve_is_equal_for_equal_models():
    by_preset = registry.resolve("backbones", {"kind": "dit", "preset": "dit-s/2"})
    by_hand = registry.resolve("backbones", {"kind": "dit", "width": 384, "depth": 12, "heads": 6, "patch": 2})
    assert by_preset == by_hand and by_preset["kind"] == "dit"
    assert registry.resolve("backbones", by_preset) == by_preset


@pytest.mark.parametrize("family", ["autoencoders", "backbones"])
def test_every_preset_of_every_kind_is_valid(family):
    for kind in registry.kinds(family):
        for preset in registry.presets(family, kind):
            registry.make_config(family, {"kind": kind, "preset": preset})


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("backbones", {"kind": "dot"}, ["kind", "'dot'", "did you mean 'dit'"]),
        ("backbones", {}, ["kind", "dit"]),
        ("backbones", {"kind": "dit", "widht": 3}, ["widht", "did you mean 'width'"]),
        ("backbones", {"kind": "dit", "preset": "dit-s2"}, ["preset", "did you mean 'dit-s/2'"]),
        ("backbones", {"kind": "dit", "width": "wide"}, ["width", "int", "'wide'"]),
        ("backbones", {"kind": "dit", "width": 2.5}, ["width", "int", "2.5"]),
        ("backbones", {"kind": "dit", "depth": True}, ["depth", "int", "True"]),
        ("backbones", {"kind": "dit", "qk_norm": 1}, ["qk_norm", "bool"]),
        ("backbones", {"kind": "dit", "depth": None}, ["depth", "int", "None"]),
        ("backbones", {"kind": "dit", "width": 50, "heads": 3}, ["heads", "50"]),
        ("autoencoders", {"kind": "kl", "multipliers": [1, "2"]}, ["multipliers[1]", "int"]),
        ("autoencoders", {"kind": "kl", "multipliers": 3}, ["multipliers", "3"]),
        ("autoencoders", {"kind": "kl", "width": 48}, ["groups", "48"]),
        ("autoencoders", {"kind": "kl", "multipliers": []}, ["multipliers"]),
        ("autoencoders", {"kind": "kl", "blocks": 0}, ["blocks", "at least 1"]),
        ("backbones", {"kind": "dit", "width": 6, "heads": 3}, ["width", "multiple of 4"]),
        ("backbones", {"kind": "dit", "mlp_ratio": 0}, ["mlp_ratio", "0"]),
        ("backbones", {"kind": "shifted_convs", "limit": "x"}, ["limit", "float", "'x'"]),
    ],
)
def test_errors_name_the_field_and_the_nearest(dropped, family, options, words):
    with pytest.raises(ValueError) as caught:
        registry.make_config(family, options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_a_file_that_lacks_a_model_is_named(tmp_path, monkeypatch):
    (tmp_path / "half.py").write_text("Config = None\n")
    monkeypatch.setattr(models.backbones, "__path__", [*models.backbones.__path__, str(tmp_path)])
    with pytest.raises(ValueError, match=r"half\.py defines no `Model`"):
        registry.build("backbones", {"kind": "half"})
    sys.modules.pop("models.backbones.half", None)
