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

    def patches(images: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.unfold(images.double() / 255, side, stride=side)  # [n, c*side*side, patches]
        return x.transpose(1, 2)

    d = config.data.channels * side * side
    count, total, square = 0, torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    train, val = (Index.open(data.path, split, config.data.cache) for split in ("train", "val"))
    for part in train.parts:
        share = -(-PCA_IMAGES * len(part) // (len(train) * PCA_BATCH))  # batches of this bucket
        for images in itertools.islice(validation_images(part, config.data, PCA_BATCH), share):
            x = patches(images).flatten(0, 1)  # [n * patches, d]
            count, total, square = count + len(x), total + x.sum(0), square + x.T @ x
    mean = total / count
    basis = torch.linalg.eigh(square / count - torch.outer(mean, mean))[1][:, -keep:]  # [d, keep], largest last
    psnr = []
    for part in val.parts:
        for images in validation_images(part, config.data, PCA_BATCH):
            x = patches(images) - mean
            mse = (x - x @ basis @ basis.T).square().mean((1, 2))
            psnr.append(-10 * mse.clamp(min=1e-10).log10())
    return float(torch.cat(psnr).mean())
