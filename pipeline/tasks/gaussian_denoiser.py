"""The yardstick of the diffusion model: the best denoiser of a Gaussian with the covariance of the latents."""

from __future__ import annotations

import math

from pipeline.artifacts import Artifact
from pipeline.config import Config
from pipeline.schema.section import result_fields

GAUSSIAN_LIMIT = 4096  # elements of a latent above which its full covariance (and the yardstick) is left out


def gaussian_loss(config: Config, latents: Artifact) -> float | None:
    """Loss of the best denoiser of a Gaussian with the latents' mean and full covariance, in closed form.

    A network that has learned more than second moments is below it. None where the latents are too large; where they
    are of several shapes or of unequal length, which have no covariance in common; and where they are no more than
    their dimensions: such a Gaussian has their span by heart, and is far below any network on what is held out.
    """
    import numpy as np
    import torch

    from models.diffusion import gaussian
    from models.diffusion.objectives import Times
    from models.diffusion.process import make_path
    from pipeline.data.latent_pool import shard_paths
    from pipeline.data.latent_shards import LatentIndex
    from pipeline.data.latents import LatentSpace

    channels, *sides = latents.summary["shape"]
    places = math.prod(sides)
    d = channels * places
    if d > GAUSSIAN_LIMIT or "buckets" in latents.summary:
        return None
    space = LatentSpace.load(latents.path / "latents.json")
    index = LatentIndex.open(shard_paths(latents, "train"))
    if index.unequal or len(index) <= d:
        return None
    total, square, variance, count = np.zeros(d), np.zeros((d, d)), np.zeros(d), 0
    scale = space.std.double().numpy().repeat(places)  # one number an element
    for first in range(0, len(index), 4096):
        rows = np.arange(first, min(first + 4096, len(index)))
        moments = index.moments(rows, 0).astype(np.float64)  # [n, 2C, *sides]
        mean, logvar = (part.reshape(len(moments), d) for part in np.split(moments, 2, axis=1))
        x = space.normalise(torch.from_numpy(mean).view(-1, channels, *sides)).flatten(1).numpy()
        total += x.sum(0)
        square += x.T @ x
        variance += np.exp(logvar).sum(0) / scale**2
        count += len(x)
    centre = total / count
    covariance = square / count - np.outer(centre, centre) + np.diag(variance / count)
    section = config.diffusion
    return gaussian.gaussian_loss(
        torch.from_numpy(np.linalg.eigvalsh(covariance)),
        make_path(**result_fields(section.path)),
        section.prediction,
        Times(section.times.kind, section.times.mean, section.times.std),
        section.weighting,
    )
