"""Keys of the pool of latents: those of images are what they were, those of sounds and clips hold what decides."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.data.value_map import ValueMap
from pipeline.files import digest
from pipeline.schema.data import Data
from pipeline.stages.encode import seen

CLIPS = {"source": {"kind": "clips", "path": "/clips"}, "clip": {"frames": 4, "rate": 8}}
SOUND = {"source": {"kind": "sound", "path": "/sounds"}, "channels": 1, "sound": {}}
RASTERS = {
    "source": {"kind": "rasters", "path": "/scans"}, "channels": 1, "values": {"dtype": "int16", "window": [40, 400]},
}  # fmt: skip


def key(given: dict[str, Any]) -> str:
    data = Data.model_validate(given)
    values = data.values and ValueMap.of(data.values, data.channels, data.values.pairs or ())
    return digest([seen(data, values)])


def changed(given: dict[str, Any], section: str, **values: Any) -> dict[str, Any]:
    return {**given, section: {**given[section], **values}}


def test_keys_of_images_are_those_of_roots_that_exist() -> None:
    assert key({"source": {"kind": "digits"}}) == "4d2d73eaa617728b74973d9e5230dcba0d364b52caf724cb1f53b9535c811a1e"
    assert key(RASTERS) == "c0a5d419d413ce5af15548270c50c3e4c7240c3fa3095e5442b464b62f1f4841"


@pytest.mark.parametrize(
    "given, section, same, other",
    [
        (CLIPS, "clip", {"longest": 30, "most_frames": 50, "most_pixels": 10**6, "rate": 9}, {"frames": 5}),
        (SOUND, "sound", {"dtype": "float32"}, {"loudness": "peak"}),
        (SOUND, "sound", {}, {"decibels": [-90, 10]}),
    ],
)
def test_keys_hold_what_the_encoder_sees(
    given: dict[str, Any], section: str, same: dict[str, Any], other: dict[str, Any]
) -> None:
    assert key(changed(given, section, **same)) == key(given) != key(changed(given, section, **other))
