"""The yardstick of the autoencoder: the best linear code of patches with as many numbers as the latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact
from pipeline.config import Config
from pipeline.data.split import validation_images

if TYPE_CHECKING:
    import torch


PCA_BATCH = 50  # images whose patches are in memory at once
PCA_IMAGES = 5_000  # training images behind the patch PCA: its covariance has at most 192 x 192 numbers


def patches(images: torch.Tensor, side: int) -> torch.Tensor:
    """Patches float64 [n, P, C side side] in [0, 1], row by row, of images [n, C, H, W], uint8 or
    float in [-1, 1]."""
    import torch

    pixels = (images.double() + 1) / 2 if images.is_floating_point() else images.double() / 255
    x = torch.nn.functional.unfold(pixels, side, stride=side)  # [n, C side side, P]
    return x.transpose(1, 2)


def components(count: int, total: torch.Tensor, square: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [d] and the first principal components [d, keep], largest last, of `count` patches with this sum [d] and sum
    of outer products [d, d]."""
    import torch

    mean = total / count
    return mean, torch.linalg.eigh(square / count - torch.outer(mean, mean))[1][:, -keep:]


def patch_pca(config: Config, data: Artifact, model: Any) -> float:
    """PSNR (dB) on the held-out images of the best linear code with as many numbers as the latents.

    Each patch of factor x factor pixels becomes its first `latent_channels` principal components (fitted to training
    images, of each bucket the same share): what an autoencoder of the same size has to beat. Same mean over images as
    `val_psnr`.
    """
    import itertools

    import torch

    from pipeline.data.index import Index

    side, keep = model.factor, model.latent_channels

    d = config.data.channels * side * side
    count, total, square = 0, torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    train, val = (Index.open(data.path, split, config.data.cache) for split in ("train", "val"))
    for part in train.parts:
        share = -(-PCA_IMAGES * len(part) // (len(train) * PCA_BATCH))  # batches of this bucket
        for images in itertools.islice(validation_images(part, config.data, PCA_BATCH), share):
            x = patches(images, side).flatten(0, 1)  # [n * patches, d]
            count, total, square = count + len(x), total + x.sum(0), square + x.T @ x
    mean, basis = components(count, total, square, keep)
    psnr = []
    for part in val.parts:
        for images in validation_images(part, config.data, PCA_BATCH):
            x = patches(images, side) - mean
            mse = (x - x @ basis @ basis.T).square().mean((1, 2))
            psnr.append(-10 * mse.clamp(min=1e-10).log10())
    return float(torch.cat(psnr).mean())
