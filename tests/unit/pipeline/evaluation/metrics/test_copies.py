"""Copies are found however they were moved; duplicates in either set hide none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pipeline.evaluation.metrics import copies

Images = np.ndarray[Any, np.dtype[np.uint8]]


def pictures(n: int, seed: int, side: int = 16, blur: float = 1.2) -> Images:
    draw = np.random.Generator(np.random.Philox(seed)).normal(size=(n, side, side, 3))
    smooth = gaussian_filter(draw, (0, blur, blur, 0))
    return np.clip(127 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def noisy(images: Images, seed: int = 9) -> Images:
    noise = np.random.Generator(np.random.Philox(seed)).normal(0, 6, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


TRAIN, HELD_OUT = pictures(120, 0), pictures(60, 1)
FENCE = copies.fence(copies.by_pixels(HELD_OUT, TRAIN).ratio)


def test_images_of_their_own_are_no_copies() -> None:
    assert 0.3 < FENCE < 0.9
    assert not (copies.by_pixels(pictures(60, 2), TRAIN).ratio < FENCE).any()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("moved", [(0, 0), (1, -2), (-2, 0)])
def test_a_copy_is_found_moved_and_mirrored(mirrored: bool, moved: tuple[int, int]) -> None:
    there = noisy(copies._moved(TRAIN[:8], *moved))
    found = copies.by_pixels(there[:, :, ::-1] if mirrored else there, TRAIN)
    assert (found.ratio < FENCE).all() and (found.distance < 10).all()
    assert found.index.tolist() == list(range(8))
    assert (found.mirrored == mirrored).all() and (found.moved == moved).all()


def test_a_shift_is_measured_over_what_both_show() -> None:
    found = copies.by_pixels(copies._moved(TRAIN[:3], 1, 2), TRAIN)
    assert (found.distance == 0).all() and (found.ratio == 0).all()


def test_twins_in_training_hide_no_copy() -> None:
    twice = np.concatenate([TRAIN, TRAIN[:4], TRAIN[:4]])
    assert (copies.by_pixels(noisy(TRAIN[:4]), twice).ratio < FENCE).all()


def test_held_out_images_that_are_in_training_hide_no_copy() -> None:
    mixed = np.concatenate([HELD_OUT, TRAIN[:9]])
    found = copies.by_pixels(mixed, TRAIN)
    fence = copies.fence(found.ratio)
    assert (found.ratio[60:] < fence).all() and (copies.by_pixels(noisy(TRAIN[20:30]), TRAIN).ratio < fence).all()


def test_in_features_the_mirror_image_counts() -> None:
    train, new = (np.random.Generator(np.random.Philox(seed)).normal(size=(90, 12)) for seed in (0, 1))
    plain = copies.by_features(new, new + 1, train)
    near = copies.by_features(new, train + 0.01, train)
    assert near.index.tolist() == list(range(90)) and near.mirrored.all()
    assert (near.ratio < copies.fence(plain.ratio)).all()


def test_one_channel_odd_sides_and_few_images() -> None:
    small = pictures(5, 3, side=7)[..., :1]
    found = copies.by_pixels(small[:2], small)
    assert found.index.tolist() == [0, 1] and (found.ratio == 0).all()
    with pytest.raises(ValueError, match="two training images"):
        copies.by_pixels(small, small[:1])
    with pytest.raises(ValueError, match="20 at least"):
        copies.fence(found.ratio)
