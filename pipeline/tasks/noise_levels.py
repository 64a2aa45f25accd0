"""The validation loss by noise level: how well a denoiser does where there is little noise, and where there is much.

Training times come from u in (0, 1) (`models/diffusion/objectives.py`), so that eight equal parts of it are met equally
often in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

BINS = 8
NAME = "val_loss_level_{}"  # 1: the least noise
WIDTH, HEIGHT, EDGE = 720, 400, 48  # pixels of the picture, and of its margins


def sums(u: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """float64 [2, BINS]: of each bin the weighted sum of values [n], and the sum of weights; u [n] in (0, 1)."""
    import torch

    bins = (u * BINS).long().clamp(0, BINS - 1)
    rows = torch.stack([values * weight, weight]).double()  # [2, n]
    return torch.zeros(2, BINS, dtype=torch.float64, device=rows.device).index_add_(1, bins, rows).cpu()


def named(total: Sequence[float], count: Sequence[float]) -> dict[str, float]:
    """Means by name, of the bins that have any."""
    return {NAME.format(i + 1): a / b for i, (a, b) in enumerate(zip(total, count, strict=True)) if b}


def levels(times: Any, path: Any) -> list[float]:
    """The noise levels (noise over data) at which bins begin and end, BINS + 1 of them; the ends are the middle of the
    first and last thousandth."""
    import torch

    from models.diffusion.process import noise_level

    u = torch.linspace(0, 1, BINS + 1, dtype=torch.float64).clamp(5e-4, 1 - 5e-4)
    return [float(level) for level in noise_level(path, times(u, path))]


def picture(values: dict[str, float], edges: Sequence[float]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A bar a bin, its loss above it, noise levels below: uint8 [H, W, 3]."""
    from PIL import Image, ImageDraw, ImageFont

    sheet = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    highest, width = max(values.values(), default=1.0) or 1.0, (WIDTH - 2 * EDGE) / BINS
    base = HEIGHT - EDGE
    for i in range(BINS):
        left, value = EDGE + i * width, values.get(NAME.format(i + 1))
        if value is not None:
            top = base - value / highest * (base - EDGE)
            pen.rectangle((left + 4, top, left + width - 4, base), fill="#4a7fb5")
            pen.text((left + width / 2, top - 4), f"{value:.3g}", fill="black", font=font, anchor="mb")
    for i, level in enumerate(edges):
        pen.text((EDGE + i * width, base + 6), f"{level:.2g}", fill="black", font=font, anchor="mt")
    pen.line((EDGE, base, WIDTH - EDGE, base), fill="black")
    pen.text((WIDTH / 2, HEIGHT - 8), "noise over data", fill="black", font=font, anchor="mb")
    pen.text((WIDTH / 2, 8), "validation loss by noise level", fill="black", font=font, anchor="mt")
    return np.asarray(sheet)
