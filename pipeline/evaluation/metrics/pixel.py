"""How close reconstructions are to their images, pixel by pixel: PSNR and SSIM.

Images [n, H, W, C] are uint8, of which the data range is 255, or floats in [-1, 1], to which the data's own range is
brought, of which it is 2. Distances of distributions are in `frechet.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Images = np.ndarray[Any, np.dtype[np.uint8]]  # [n, H, W, C]
SSIM_WINDOW = 11  # pixels, the side of the Gaussian window (Wang et al., 2004)
CHUNK = 256  # images worked on at once


def psnr(images: Images, reconstructions: Images) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(range^2 / MSE) of each image, a mean over images.

    An image that is met exactly has no finite ratio: ValueError, as for shapes that differ.
    """
    from pipeline.evaluation.metrics.library import torchmetrics

    peak_signal_noise_ratio = torchmetrics("functional.image").peak_signal_noise_ratio
    _check(images, reconstructions)
    total = 0.0
    for start in range(0, len(images), CHUNK):
        rows = slice(start, start + CHUNK)
        values = peak_signal_noise_ratio(
            _tensor(reconstructions[rows]),
            _tensor(images[rows]),
            data_range=_range(images),
            dim=(1, 2, 3),
            reduction="none",
        )
        total += float(values.sum())
    if not np.isfinite(total):
        raise ValueError("a reconstruction equals its image: its PSNR is infinite")
    return total / len(images)


def ssim(images: Images, reconstructions: Images) -> float:
    """Structural similarity in [-1, 1] (Wang et al., 2004), a mean over images.

    Gaussian window of 11 pixels, sigma 1.5, data range 255 or 2. Images smaller than the window are a ValueError.
    """
    from pipeline.evaluation.metrics.library import torchmetrics

    structural_similarity = torchmetrics("functional.image").structural_similarity_index_measure
    _check(images, reconstructions)
    if min(images.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW} pixels, not {images.shape[1]}x{images.shape[2]}")
    total = 0.0
    for start in range(0, len(images), CHUNK):
        rows = slice(start, start + CHUNK)
        values = structural_similarity(
            _tensor(reconstructions[rows]), _tensor(images[rows]), data_range=_range(images), reduction="none"
        )
        total += float(values.sum())
    return total / len(images)


def _check(images: Images, others: Images) -> None:
    if images.shape != others.shape or images.ndim != 4 or not len(images):
        raise ValueError(f"expected two equal shapes [n, H, W, C], got {images.shape} and {others.shape}")
    if images.dtype != others.dtype or images.dtype not in (np.uint8, np.float32):
        raise ValueError(f"expected uint8 images, or floats in [-1, 1], got {images.dtype} and {others.dtype}")


def _range(images: Images) -> float:
    """The largest difference that two pixels can have."""
    return 255.0 if images.dtype == np.uint8 else 2.0


def _tensor(images: Images) -> Any:
    """[n, H, W, C] -> float64 [n, C, H, W]: squared errors of 8-bit pixels are then exact."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).double()
