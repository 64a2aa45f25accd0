"""What is measured of images of several bands besides what is measured of them as pictures (`scores.py`): how the bands
hang together.

The covariance between bands is that of all pixels of a set, each band in [-1, 1] by the data's own range, so that bands
weigh alike: S [C, C]. Said is how far it is from that of training images, ||S - S_train|| / ||S_train|| (Frobenius), of
samples and beside it of held-out images. Where a scene is small, held-out places differ from those trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MEASURES = "covariance 1"  # raised when a report of several bands holds other figures


def covariance(images: Array) -> Array:
    """[C, C] of the values of all pixels of images [n, H, W, C]."""
    found: Array = np.cov(images.reshape(-1, images.shape[-1]).astype(np.float64), rowvar=False)
    return found


def measure(train: Array, sets: Mapping[str, Array]) -> dict[str, float]:
    """Of sets of images [n, H, W, C], by name, how far their covariance between bands is from that of `train`, as a
    share of it; empty where all pixels of `train` are alike."""
    real = covariance(train)
    norm = float(np.linalg.norm(real))
    return {name: float(np.linalg.norm(covariance(x) - real)) / norm for name, x in sets.items()} if norm else {}


def key_figures(measured: Mapping[str, float]) -> dict[str, float]:
    return {"band_covariance" + ("" if name == "samples" else f"_{name}"): value for name, value in measured.items()}


def lines(measured: Mapping[str, float]) -> list[str]:
    return (
        [
            f"covariance between bands, its distance from that of training images as a share of it: "
            f"{measured['samples']:.1%} of samples, {measured['held_out']:.1%} of held-out images, "
            f"{measured['reconstructions']:.1%} of their reconstructions"
        ]
        if measured
        else []
    )
