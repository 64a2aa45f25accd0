"""Images of any depth and number of bands as TIFF files: a band after the other, deflated, with their unit. What other
TIFF files hold is read by `raster_files.py`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.files import atomic_write

Array = np.ndarray[Any, np.dtype[Any]]


def write_tiff(path: Path, image: Array, unit: str | None) -> None:
    """Write values [H, W, C], whole or not at all; equal values are equal bytes."""
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image.transpose(2, 0, 1)),
        photometric="minisblack",
        planarconfig=None if image.shape[-1] == 1 else "separate",
        compression="zlib",
        description=json.dumps({"unit": unit}) if unit else None,
        metadata=None,
        software=False,
    )
    atomic_write(path, buffer.getvalue())


def read_tiff(path: Path) -> Array:
    """Values [H, W, C] of a file that `write_tiff` wrote. UserError where it cannot be read."""
    import tifffile

    try:
        values: Array = tifffile.imread(path)
    except Exception as error:  # a damaged file raises whatever its reader meets first
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); give a new folder for the samples") from None
    return values[..., None] if values.ndim == 2 else values.transpose(1, 2, 0)
