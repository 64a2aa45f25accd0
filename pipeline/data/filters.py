"""Filters against noise: Gaussian, median and wavelet, on images of 8 bits a channel, channel by channel.

They are applied once, at ingest, at the source's own resolution, where noise is independent from pixel to pixel. How
they compare on given images is shown by `denoise.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.schema.filters import Filter, WaveletFilter

Array = np.ndarray[Any, np.dtype[Any]]
MOST_LEVELS = 5
NORMAL_MAD = 0.6745  # the median of |z| for z ~ N(0, 1)


def apply(image: Image.Image, filters: Sequence[Filter]) -> Image.Image:
    """An RGB or L image after all filters, in their order, rounded once at the end; without filters, the image."""
    from PIL import Image

    if not filters:
        return image
    pixels = np.asarray(image).astype(np.float64)  # [H, W] or [H, W, C]
    planes = pixels[:, :, None] if pixels.ndim == 2 else pixels
    done = np.stack([_filter_plane(planes[:, :, c], filters) for c in range(planes.shape[2])], axis=2)
    rounded = np.clip(np.rint(done), 0, 255).astype(np.uint8)
    return Image.fromarray(rounded[:, :, 0] if pixels.ndim == 2 else rounded)


def _filter_plane(plane: Array, filters: Sequence[Filter]) -> Array:
    """All filters on one channel: float64 [H, W], in grey levels. Beyond its edges an image goes on mirrored."""
    from scipy import ndimage

    for one in filters:
        if one.kind == "gaussian":
            plane = ndimage.gaussian_filter(plane, one.sigma, mode="reflect")
        elif one.kind == "median":
            plane = ndimage.median_filter(plane, one.size, mode="reflect")
        else:
            plane = wavelet(plane, one)
    return plane


def noise_level(plane: Array) -> float:
    """Standard deviation of white noise in [H, W], in grey levels: the median of the finest diagonal coefficients over
    that of a normal variable (Donoho and Johnstone 1994, "Ideal spatial adaptation by wavelet shrinkage")."""
    import pywt

    _, (_, _, diagonal) = pywt.dwt2(plane, "db2")
    return float(np.median(np.abs(diagonal)) / NORMAL_MAD)


def wavelet(plane: Array, options: WaveletFilter) -> Array:
    """Soft thresholds on the wavelet coefficients of [H, W], averaged over shifts of the image.

    An orthogonal transform's coefficients sit on a grid; an edge between its points leaves ripples, which differ from
    shift to shift and average out (Coifman and Donoho 1995, "Translation-invariant de-noising").
    """
    sigma = options.sigma if options.sigma is not None else noise_level(plane)
    if sigma == 0:
        return plane
    total = np.zeros_like(plane)
    for shift in range(options.shifts):
        shifted = np.pad(plane, ((shift, 0), (shift, 0)), mode="symmetric")
        total += _shrink(shifted, options, sigma)[shift:, shift:]
    mean: Array = total / options.shifts
    return mean


def _shrink(plane: Array, options: WaveletFilter, sigma: float) -> Array:
    import pywt

    fits = pywt.dwtn_max_level(plane.shape, options.wavelet)
    levels = options.levels or min(MOST_LEVELS, max(1, fits))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a small image whose every coefficient feels the edges: so it is
        coarse, *details = pywt.wavedec2(plane, options.wavelet, mode="symmetric", level=levels)
    universal = sigma * np.sqrt(2 * np.log(plane.size))  # Donoho and Johnstone 1994: all noise is below it
    shrunk = []
    for bands in details:
        limits = [universal if options.threshold == "universal" else _bayes(band, sigma) for band in bands]
        # soft threshold: sign(c) max(|c| - T, 0)
        shrunk.append(
            tuple(np.sign(c) * np.maximum(np.abs(c) - limit, 0) for c, limit in zip(bands, limits, strict=True))
        )
    whole: Array = pywt.waverec2([coarse, *shrunk], options.wavelet, mode="symmetric")
    return whole[: plane.shape[0], : plane.shape[1]]  # an odd side comes back one longer


def _bayes(band: Array, sigma: float) -> float:
    """BayesShrink: T = sigma^2 / sigma_x, sigma_x^2 = E[c^2] - sigma^2 (Chang, Yu and Vetterli 2000, eq. 9 and 12)."""
    signal = float(np.sqrt(max(0.0, float((band**2).mean()) - sigma**2)))
    return sigma**2 / signal if signal > 0 else float("inf")
