"""Which figures may stand side by side, and the verdict on autoencoder and denoiser."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.past import comparable

BASE = {"extractor": "e" * 64, "images": 500, "resolution": 32, "channels": 3, "real": "r" * 64, "guidance": 1.5}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("extractor", "f" * 64, "two extractors (eeeeeeeeeeee and ffffffffffff)"),
        ("images", 400, "500 and 400 images"),
        ("resolution", 64, "32 and 64 pixels"),
        ("channels", 1, "3 and 1 channels"),
        ("real", "s" * 64, "two sets of real images"),
        ("guidance", 1.0, "guidance 1.5 and 1.0"),
    ],
)
def test_each_condition_alone_is_a_reason(key: str, value: Any, words: str) -> None:
    other = {**BASE, key: value}
    assert words in str(comparable.why_not(BASE, other))
    assert comparable.why_not(BASE, other, varied=[key]) is None
    with pytest.raises(UserError, match="a and b cannot be compared"):
        comparable.check({"a": BASE, "b": other})
    comparable.check({"a": BASE, "b": other}, varied=[key])


def test_like_is_compared_and_images_from_elsewhere_have_no_guidance() -> None:
    comparable.check({"a": BASE, "b": dict(BASE), "c": {**BASE, "guidance": None}})
    comparable.check({})
    assert comparable.text(BASE) == "500 images a set of 32x32x3, extractor eeeeeeeeeeee, guidance 1.5"
    assert "guidance" not in comparable.text({**BASE, "guidance": None})


def test_conditions_of_a_report() -> None:
    assert comparable.conditions({"conditions": BASE}) == BASE
    with pytest.raises(UserError, match="evaluate again"):
        comparable.conditions({"frechet": {}})


def figures(real: float, samples: float, reconstructions: float) -> dict[str, Any]:
    values = {"real": real, "samples": samples, "reconstructions": reconstructions}
    return {name: {"value": value} for name, value in values.items()}


def gap(found: dict[str, Any], spread: float = 0.2) -> dict[str, Any]:
    value = found["samples"]["value"] - found["real"]["value"]
    return {"value": value, "interval": [value - spread, value + spread]}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (figures(1, 9, 2), "mostly the denoiser (autoencoder: 12%)"),
        (figures(1, 9, 8), "mostly the autoencoder (autoencoder: 88%)"),
        (figures(1, 9, 5), "both networks (autoencoder: 50%)"),
        (figures(1, 9, 12), "mostly the autoencoder (autoencoder: 100%)"),
        (figures(1, 9, 0.5), "mostly the denoiser (autoencoder: 0%)"),
        (figures(1, 1.1, 1), "not told from real images by this distance at this count: a gap of 0.1 [-0.1, 0.3]"),
        (figures(1, 0.5, 1), "not told from real images"),
    ],
)
def test_the_verdict(found: dict[str, Any], words: str) -> None:
    for kind in ("classifier", "inception", "torchscript"):
        assert words in str(comparable.verdict(found, gap(found), kind))
    told = str(comparable.verdict(found, gap(found), "random"))
    assert told.startswith("no verdict") and "untrained" in told and "%" not in told


def test_no_verdict_without_all_three() -> None:
    found = figures(1, 9, 2)
    del found["reconstructions"]
    assert comparable.verdict(found, {}, "random") is None and comparable.verdict({}, {}, "classifier") is None
