"""Differentiable measures of how alike two batches of images look: SSIM, and the energy of the gradient (sharpness).

Scores for reports, on 8-bit images, are in pipeline/evaluation/metrics/pixel.py; distances of features in
models/perceptual.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # pixels (Wang et al. 2004)


def ssim(images: Tensor, others: Tensor, data_range: float = 2.0) -> Tensor:
    """Structural similarity by image, [n] in [-1, 1]; both [n, c, H, W], in float32.

    Wang et al. 2004, equation 13: Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03; a mean over all
    windows that lie inside the image. data_range: white minus black. ValueError for images smaller than the window.
    """
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW} pixels, got {tuple(images.shape[-2:])}")
    x, y = images.float(), others.float()
    at = torch.arange(WINDOW, dtype=torch.float32, device=x.device) - WINDOW // 2
    weights = torch.exp(-at.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    n, c = x.shape[:2]
    maps = torch.cat([x, y, x * x, y * y, x * y])  # [5 n, c, H, W]
    maps = maps.flatten(0, 1).unsqueeze(1)  # -> [5 n c, 1, H, W]
    blurred = F.conv2d(F.conv2d(maps, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    mean_x, mean_y, xx, yy, xy = blurred.unflatten(0, (5, n, c)).squeeze(3).unbind(0)  # each [n, c, h, w]
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    product = mean_x * mean_y
    squares = mean_x.square() + mean_y.square()
    top = (2 * product + c1) * (2 * (xy - product) + c2)
    similar: Tensor = top / ((squares + c1) * (xx + yy - squares + c2))  # [n, c, h, w]
    return similar.mean((1, 2, 3))


def gradient_energy(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, both ways, by image: [n, c, H, W] -> [n].

    Over the originals' it says how sharp reconstructions are: 1 is as sharp, below 1 is blurred.
    """
    x = images.float()
    across = (x[..., 1:] - x[..., :-1]).square().mean((1, 2, 3))
    down = (x[..., 1:, :] - x[..., :-1, :]).square().mean((1, 2, 3))
    return across + down
