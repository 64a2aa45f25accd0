"""The latent space of one autoencoder on one data set: raw moments <-> normalised latents, in one object, both ways.

The autoencoder gives a posterior's moments (mean and log-variance). The cached latents hold those, raw. Here a latent
is drawn from the posterior and normalised by the channel's mean and standard deviation, and brought back before it is
decoded. There is no scale factor: mean and deviation are measured over the training split, or brought by a published
autoencoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import posterior
from pipeline.files import read_json, write_json

BROUGHT = "latents.json"  # of an imported autoencoder: the space that its denoiser was trained in
ROUNDING = 1e-13  # of the mean square: a smaller variance is what float64 leaves of a difference of equal numbers


@dataclass(frozen=True)
class LatentSpace:
    """Channel statistics of the latents.

    mean, std: [C], float32. The variance is the total one, Var[z] = Var[mu] + E[sigma^2] (law of total variance, for a
    latent z ~ N(mu, sigma^2) of a random image), over the training split, all positions and views.
    """

    mean: Tensor
    std: Tensor

    def draw(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Normalised latents [n, C, *sides] from moments [n, 2C, *sides] and standard normal noise [n, C, *sides]."""
        return self.normalise(posterior.sample(moments.float(), noise))

    def normalise(self, z: Tensor) -> Tensor:
        """(z - mean) / std, by channel; z: [n, C, *sides]."""
        return (z - self._by_channel(self.mean, z)) / self._by_channel(self.std, z)

    def restore(self, x: Tensor) -> Tensor:
        """The inverse of `normalise`: what the autoencoder decodes."""
        return x * self._by_channel(self.std, x) + self._by_channel(self.mean, x)

    @staticmethod
    def _by_channel(value: Tensor, like: Tensor) -> Tensor:
        return value.to(like.device, like.dtype).view(1, -1, *[1] * (like.dim() - 2))  # [C] -> [1, C, 1, ...]

    def save(self, path: str | Path) -> None:
        write_json(path, {"mean": self.mean.tolist(), "std": self.std.tolist()})

    @classmethod
    def load(cls, path: str | Path) -> LatentSpace:
        values = read_json(path)
        return cls(torch.tensor(values["mean"]), torch.tensor(values["std"]))


def sums(moments: np.ndarray[Any, Any], places: np.ndarray[Any, Any] | None = None) -> dict[str, Any]:
    """Sums over one shard from which the statistics are merged; moments: [n, v, 2C, *sides], any float type; places:
    bool [n, *sides] of those that are there, where latents are of unequal length.

    Returns count (elements a channel) and, by channel in float64, the sums of mu, mu^2 and sigma^2.
    """
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=2)  # each [n, v, C, *sides]
    axes = (0, 1, *range(3, mean.ndim))
    variance, count = np.exp(logvar), int(mean.size // mean.shape[2])
    if places is not None:
        there = places[:, None, None]  # [n, 1, 1, *sides]
        mean, variance, count = mean * there, variance * there, int(places.sum()) * mean.shape[1]
    return {
        "count": count,
        "mean": mean.sum(axes).tolist(),
        "square": (mean**2).sum(axes).tolist(),
        "variance": variance.sum(axes).tolist(),
    }


def merge(shards: Iterable[dict[str, Any]]) -> LatentSpace:
    """The latent space from the shards' sums, added in the order given: its bits do not depend on who made them.

    A channel that is constant has a deviation of exactly 0.
    """
    count, total = 0, {name: np.zeros(()) for name in ("mean", "square", "variance")}
    for shard in shards:
        count += shard["count"]
        total = {name: value + np.asarray(shard[name]) for name, value in total.items()}
    mean = total["mean"] / count
    variance = total["square"] / count - mean**2 + total["variance"] / count  # Var[mu] + E[sigma^2]
    variance = np.where(variance <= ROUNDING * total["square"] / count, 0.0, variance)
    return LatentSpace(torch.from_numpy(mean).float(), torch.from_numpy(variance).sqrt().float())
