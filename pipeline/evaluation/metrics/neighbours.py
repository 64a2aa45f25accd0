"""Nearest training images: a first check of privacy, whether samples are copies of what the model was trained on.

Rows are points of any space (pixels or features). A model that generalises lies about as far from its training images
as held-out images do; one that copies lies nearer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[Any]]
CHUNK = 256  # queries at once
PERCENTILE = 1.0


@dataclass(frozen=True)
class Nearness:
    """How near samples lie to the training images, against held-out images. Distances are Euclidean.

    threshold: the first percentile of the held-out distances. share_below: of the samples, nearer than that; a share
    well above 0.01 says that samples are copies. held_out_share_below: the same share of the held-out images.
    """

    space: str
    sample_median: float
    held_out_median: float
    threshold: float
    share_below: float
    held_out_share_below: float
    samples: int
    held_out: int
    train: int

    def json(self) -> dict[str, Any]:
        return asdict(self)


def nearest(queries: Array, train: Array) -> tuple[Array, Array]:
    """The nearest row of `train` [m, d] to each of `queries` [n, d]: its distance float64 [n] and index int64 [n].

    The index is found through inner products in float32, in chunks; the distance of that pair is then computed exactly.
    """
    if not len(train) or queries.shape[1:] != train.shape[1:]:
        raise ValueError(f"expected [n, d] and [m, d] with m > 0, got {queries.shape} and {train.shape}")
    # A common shift changes no distance, and keeps |a|^2 - 2ab + |b|^2 clear of cancellation.
    shift = train.mean(0, dtype=np.float64)
    indices, best = np.zeros(len(queries), np.int64), np.full(len(queries), np.inf, np.float32)
    asked = torch.from_numpy((queries - shift).astype(np.float32))
    for start in range(0, len(train), 4096):  # [4096, d] of training rows at a time: the whole set may not fit twice
        rows = torch.from_numpy((train[start : start + 4096] - shift).astype(np.float32))
        squares = rows.square().sum(1)
        for at in range(0, len(queries), CHUNK):
            part = slice(at, at + CHUNK)
            value, index = (squares - 2 * asked[part] @ rows.T).min(1)  # |b|^2 - 2ab; |a|^2 is the same for all b
            nearer = value.numpy() < best[part]
            best[part] = np.where(nearer, value.numpy(), best[part])
            indices[part] = np.where(nearer, index.numpy() + start, indices[part])
    gaps = queries.astype(np.float64) - train[indices]
    return np.sqrt(np.square(gaps).sum(1)), indices


def nearness(space: str, sample_distances: Array, held_out_distances: Array, train: int) -> Nearness:
    """Compare distances [n] of samples and [m] of held-out images to the nearest of `train` training images."""
    if not len(sample_distances) or not len(held_out_distances):
        raise ValueError("distances of at least one sample and one held-out image are needed")
    threshold = float(np.percentile(held_out_distances, PERCENTILE))
    return Nearness(
        space=space,
        sample_median=float(np.median(sample_distances)),
        held_out_median=float(np.median(held_out_distances)),
        threshold=threshold,
        share_below=float((sample_distances < threshold).mean()),
        held_out_share_below=float((held_out_distances < threshold).mean()),
        samples=len(sample_distances),
        held_out=len(held_out_distances),
        train=train,
    )
