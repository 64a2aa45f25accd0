"""Planted training images are found, as they are and mirrored, with what is known of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pipeline.applications.nearest import Training, nearest
from pipeline.errors import UserError
from pipeline.evaluation.metrics.features import Extractor

EXTRACTOR = Extractor("random", "0" * 64, "pixels", lambda x: x.flatten(1).float())


def pictures(n: int, seed: int, side: int = 12) -> np.ndarray[Any, np.dtype[np.uint8]]:
    noise = np.random.Generator(np.random.Philox(seed)).normal(size=(n, side, side, 3))
    return np.clip(127 + 100 * gaussian_filter(noise, (0, 1, 1, 0), mode="wrap") / 0.3, 0, 255).astype(np.uint8)


TRAIN = pictures(80, 0)
LINEAGE = [{"key": f"a/{i}", "shard": f"s{i // 40}", "data": "ingest/1"} for i in range(len(TRAIN))]
TRAINING = Training(TRAIN, EXTRACTOR(TRAIN), EXTRACTOR, LINEAGE, {"trained_on": 80})


def test_a_planted_image_is_found_at_distance_zero_also_mirrored() -> None:
    images = np.stack([TRAIN[3], TRAIN[41][:, ::-1], pictures(1, 1)[0]])
    plain, turned, new = nearest(TRAINING, images, 4)
    for way in ("pixels", "features"):
        first = plain[way][0]
        assert first["distance"] == 0 and first["place"] == 3 and not first["mirrored"] and first["moved"] == [0, 0]
        assert first["key"] == "a/3" and first["shard"] == "s0" and first["data"] == "ingest/1"
        assert turned[way][0]["distance"] == 0 and turned[way][0]["key"] == "a/41" and turned[way][0]["mirrored"]
        assert new[way][0]["distance"] > 0
        for found in (plain, turned, new):
            distances = [one["distance"] for one in found[way]]
            assert distances == sorted(distances) and len({one["place"] for one in found[way]}) == 4


def test_a_moved_one_is_found_by_pixels() -> None:
    (found,) = nearest(TRAINING, np.roll(TRAIN[7], (2, -1), (0, 1))[None], 1)
    assert [(one["place"], one["moved"]) for one in found["pixels"]] == [(7, [2, -1])]
    assert found["pixels"][0]["distance"] == 0


def test_distances_in_features_are_those_of_all_training_images() -> None:
    image = pictures(1, 2)
    gaps = [np.linalg.norm(EXTRACTOR(side) - TRAINING.features, axis=1) for side in (image, image[:, :, ::-1])]
    expected = np.sort(np.minimum(*gaps))[:5]
    (found,) = nearest(TRAINING, image, 5)
    np.testing.assert_allclose([one["distance"] for one in found["features"]], expected)


def test_another_size_and_too_many_are_one_line() -> None:
    with pytest.raises(UserError, match=r"images are 8x8x3 .*, training images 12x12x3"):
        nearest(TRAINING, pictures(1, 0, 8))
    with pytest.raises(UserError, match="51 asked for, expected 1 to 50"):
        nearest(TRAINING, TRAIN[:1], 51)
