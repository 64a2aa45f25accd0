"""Copies: samples that are a training image again, also moved by a few pixels, mirrored, or blurred by the autoencoder.

How near a sample lies to its nearest training image says nothing alone: smooth images are near to all others. So the
distance is divided by the mean distance to its 50 nearest training images (Carlini et al. 2023, "Extracting Training
Data from Diffusion Models", section 5.1): about 1 for an image of its own, near 0 for a copy; twins among the training
images do not hide it. Which ratio is a copy's is read off held-out images, which are none: Tukey's outer fence below
their quartiles (1977, "Exploratory Data Analysis"). Quartiles do not feel the few held-out images that are
in the training data as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Array = np.ndarray[Any, np.dtype[Any]]
Images = np.ndarray[Any, np.dtype[np.uint8]]  # [n, H, W, C]
NEIGHBOURS = 50  # training images that a distance is compared with
TRIED = 5  # of these the nearest, over which an image is moved
SHIFT = 2  # pixels, in both directions
SIDE = 8  # pixels a side of the small images by which neighbours are found
CHUNK, BLOCK = 256, 4096  # images, and training images, at once
VALUES = 2**24  # of images that are made smaller at once
FENCE = 3.0  # distances between the quartiles below the lower one
LEAST = 20  # held-out images that quartiles are taken of


@dataclass(frozen=True)
class Nearest:
    """Of each image its nearest training image. distance: float64 [n], in gray levels (root mean square over pixels) or
    in the features' unit. ratio: float64 [n], over the mean distance to the neighbours. index: int64 [n]. mirrored:
    bool [n], whether it is near to the image's mirror image. moved: int64 [n, 2], pixels down and right by which the
    image (or its mirror image) is moved against it. Of several nearest images all are [n, k], the nearest first."""

    distance: Array
    ratio: Array
    index: Array
    mirrored: Array
    moved: Array


def by_pixels(images: Images, train: Images, shift: int = SHIFT, k: int | None = None) -> Nearest:
    """Nearest training images [m, H, W, C] of images [n, H, W, C], over mirroring and shifts of up to `shift` pixels.

    Neighbours are found on images of at most 8 x 8 pixels, where a shift by a pixel changes little; distances are of
    whole images, a shifted one's over what both show. k: of each the k nearest, at most 50. ValueError for fewer than
    two training images, and other sizes.
    """
    shift = min(shift, (min(images.shape[1:3]) - 1) // 2)
    flipped = images[:, :, ::-1]
    ways = [(y, x) for y in (-shift, 0, shift) for x in (-shift, 0, shift)] if shift else [(0, 0)]
    sides = [_small(_moved(side, y, x)) for side in (images, flipped) for y, x in ways]
    near = _candidates(sides, _small(train))
    n, count = near.shape
    plain = np.empty((2, n, count))  # as it is, mirrored
    for row in range(n):
        there = train[near[row]]
        plain[:, row] = [_apart(side[row], there) for side in (images, flipped)]
    neighbours = plain.min(0)
    best, turned, moved = neighbours.copy(), plain[1] < plain[0], np.zeros((n, count, 2), np.int64)
    tried = max(TRIED, k or 1)
    steps = [(y, x) for y in range(-shift, shift + 1) for x in range(-shift, shift + 1) if (y, x) != (0, 0)]
    for row in range(n):
        there = train[near[row, :tried]]  # the nearest first, moved ones among them
        for mirrored, side in enumerate((images, flipped)):
            for y, x in steps:
                gaps = _apart(_part(side[row], y, x), _part(there, -y, -x))
                nearer = np.flatnonzero(gaps < best[row, : len(gaps)])
                best[row, nearer], turned[row, nearer], moved[row, nearer] = gaps[nearer], bool(mirrored), (-y, -x)
    return _first(best, neighbours, near, turned, moved, k)


def by_features(features: Array, mirrored: Array, train: Array, k: int | None = None) -> Nearest:
    """The same in the features float [n, d] of images, [n, d] of them mirrored, and [m, d] of training images."""
    sides = [torch.from_numpy(np.asarray(one, np.float32)) for one in (features, mirrored)]
    near = _candidates(sides, torch.from_numpy(np.asarray(train, np.float32)))
    gaps = np.stack(
        [np.linalg.norm(one[:, None].astype(np.float64) - train[near], axis=2) for one in (features, mirrored)]
    )
    best = gaps.min(0)
    return _first(best, best, near, gaps[1] < gaps[0], np.zeros((*near.shape, 2), np.int64), k)


def _first(best: Array, neighbours: Array, near: Array, turned: Array, moved: Array, k: int | None) -> Nearest:
    """The nearest, or the k nearest, of the candidates `near` [n, count], by the distances to all."""
    order = np.argsort(best, axis=1, kind="stable")[:, : k or 1]
    distance = np.take_along_axis(best, order, 1)
    found = [distance, _ratio(distance, neighbours), *(np.take_along_axis(a, order, 1) for a in (near, turned))]
    found.append(np.take_along_axis(moved, order[..., None], 1))
    return Nearest(*(found if k else [each[:, 0] for each in found]))


def fence(ratios: Array) -> float:
    """The ratio below which an image is a copy, from the ratios [n] of held-out images: Tukey's outer fence of their
    logarithms. ValueError for fewer than 20."""
    if len(ratios) < LEAST:
        raise ValueError(f"{len(ratios)} held-out images, {LEAST} at least say what is near")
    low, high = np.percentile(np.log(np.maximum(ratios, 1e-6)), (25, 75))
    return float(np.exp(low - FENCE * (high - low)))


def _small(images: Images) -> Tensor:
    """Gray levels float32 [n, d] of images made smaller by means over their parts."""
    _, height, width, _ = images.shape
    sides, step = (min(height, SIDE), min(width, SIDE)), max(1, VALUES // images[0].size)
    parts = [
        functional.adaptive_avg_pool2d(torch.from_numpy(part.transpose(0, 3, 1, 2).astype(np.float32)), sides)
        for part in (images[at : at + step] for at in range(0, len(images), step))
    ]
    return torch.cat(parts).flatten(1)


def _candidates(sides: list[Tensor], train: Tensor) -> Array:
    """int64 [n, k], k at most 50: the nearest rows of `train` [m, d] to any of the sides [n, d] of each image."""
    if len(train) < 2 or any(side.shape[1:] != train.shape[1:] for side in sides):
        raise ValueError(f"expected two training images at least, of the images' size, got {tuple(train.shape)}")
    k, centre = min(NEIGHBOURS, len(train)), train.mean(0)  # a common shift changes no distance
    found = []
    for at in range(0, len(sides[0]), CHUNK):
        best, index = torch.empty(0), torch.empty(0, dtype=torch.int64)
        for begin in range(0, len(train), BLOCK):
            rows = train[begin : begin + BLOCK] - centre
            # |b|^2 - 2ab; |a|^2 is the same for all b, and for both sides
            gaps = torch.stack([rows.square().sum(1) - 2 * (s[at : at + CHUNK] - centre) @ rows.T for s in sides]).amin(
                0
            )
            value, place = gaps.topk(min(k, len(rows)), dim=1, largest=False)
            best = torch.cat([best, value], 1) if len(best) else value
            index = torch.cat([index, place + begin], 1) if len(index) else place + begin
            best, kept = best.topk(min(k, best.shape[1]), dim=1, largest=False)
            index = index.gather(1, kept)
        found.append(index.numpy())
    return np.concatenate(found)


def _part(images: Images, y: int, x: int) -> Images:
    """What of images [..., H, W, C] is left when they are moved by y pixels down and x right, out of the picture."""
    height, width = images.shape[-3:-1]
    return images[..., max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x), :]


def _moved(images: Images, y: int, x: int) -> Images:
    """Images [n, H, W, C] moved by y pixels down and x right; what comes in repeats the border."""
    height, width = images.shape[1:3]
    return images[:, np.clip(np.arange(height) - y, 0, height - 1)][:, :, np.clip(np.arange(width) - x, 0, width - 1)]


def _apart(image: Images, others: Images) -> Array:
    """float64 [k]: root mean square of the differences of an image [H, W, C] and others [k, H, W, C], gray levels."""
    gaps = others.astype(np.float32) - image.astype(np.float32)
    found: Array = np.sqrt(np.square(gaps).reshape(len(others), -1).mean(1, dtype=np.float64))
    return found


def _ratio(distance: Array, neighbours: Array) -> Array:
    mean = np.broadcast_to(neighbours.mean(1)[:, None], distance.shape)
    found: Array = np.divide(distance, mean, out=np.zeros_like(distance), where=mean > 0)
    return found
