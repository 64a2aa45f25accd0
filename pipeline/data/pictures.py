"""Many images as one picture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Images = np.ndarray[Any, np.dtype[np.uint8]]  # [n, H, W, C]


def strips(clips: Images) -> Images:
    """Clips [n, T, H, W, C] as pictures of their frames side by side: [n, H, T W, C]."""
    n, frames, height, width, channels = clips.shape
    return clips.transpose(0, 2, 1, 3, 4).reshape(n, height, frames * width, channels)


def grid(images: Images, columns: int | None = None) -> Images:
    """Images [n, H, W, C] side by side, row by row: uint8 [rows * H, columns * W, 3]. Free places are white.

    `columns` is by default the smallest square's side.
    """
    n, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * columns, height, width, 3), 255, np.uint8)
    sheet[:n] = images  # gray is repeated into RGB
    cells = sheet.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)  # [r, H, c, W, 3]
    return cells.reshape(rows * height, columns * width, 3)
