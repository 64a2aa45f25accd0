"""The table of costs is what the models are: it is of these sources, holds every preset, and equals a fresh count."""

from __future__ import annotations

import json

import pytest

from models import costs, registry

TABLE = json.loads(costs.TABLE.read_text())
CHEAP = [
    ("backbones", "dit", "dit-xxs/8"),
    ("backbones", "unet", "tiny"),
    ("autoencoders", "kl", "tiny-f8"),
    ("autoencoders", "vq", "tiny-f2"),
    ("autoencoders", "kl", "base-f8"),
]


@pytest.mark.parametrize("family", list(costs.SHAPES))
def test_the_table_is_of_these_sources_and_holds_every_preset(family: str) -> None:
    assert TABLE[family]["sources"] == costs.sources_digest(family), "renew it: python -m models.costs"
    names = {f"{kind} {name}" for kind in registry.kinds(family) for name in registry.presets(family, kind)}
    assert set(TABLE[family]["costs"]) == names


@pytest.mark.parametrize(("family", "kind", "name"), CHEAP)
def test_rows_are_what_is_counted(family: str, kind: str, name: str) -> None:
    count = {"backbones": costs.backbone, "autoencoders": costs.autoencoder}[family]
    counted = count({"kind": kind, "preset": name}, *costs.SHAPES[family])
    assert list(counted) == TABLE[family]["costs"][f"{kind} {name}"]
    assert costs.preset(family, kind, name, *costs.SHAPES[family]) == counted


@pytest.mark.parametrize("family", list(costs.SHAPES))
def test_parameters_of_every_row(family: str) -> None:
    channels, size = costs.SHAPES[family]
    shape = {"channels": channels} | ({"size": size} if family == "backbones" else {})
    for row, (parameters, flops) in TABLE[family]["costs"].items():
        kind, name = row.split(" ")
        assert parameters == registry.parameters(family, {"kind": kind, "preset": name}, **shape), row
        assert flops > 0


def test_other_sources_and_other_shapes_are_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(costs, "backbone", lambda options, channels, size: asked.append((channels, size)))
    costs.preset("backbones", "dit", "dit-xxs/8", 4, 16)
    costs._stored.cache_clear()
    monkeypatch.setattr(costs, "sources_digest", lambda family: "changed")
    costs.preset("backbones", "dit", "dit-xxs/8", 4, 32)
    costs._stored.cache_clear()
    assert asked == [(4, 16), (4, 32)]
