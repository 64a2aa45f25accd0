"""The tables by which JPEG rounds, of a quality from 1 to 100, and the quality that a file's own table is nearest to.

What is measured of an image by them is `jpeg` of `models/diffusion/operators.py`.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import UserError

Array = np.ndarray[Any, Any]


@lru_cache(maxsize=100)
def tables(quality: int) -> tuple[Array, Array]:
    """The steps float32 [8, 8] of luma and chroma, in gray levels (libjpeg's scaling of ITU-T T.81, annex K)."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
    with Image.open(file) as opened:
        luma, chroma = (np.array(_tables_of(opened)[i], np.float32).reshape(8, 8) for i in (0, 1))
    return luma, chroma


def quality_of(file: Path, content: bytes | None = None) -> int:
    """The quality at whose table of luma a JPEG file was rounded, or the nearest. UserError for another file.

    content: what the file holds, where it has been read."""
    try:
        with Image.open(file if content is None else io.BytesIO(content)) as opened:
            found = _tables_of(opened)
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    if not found:
        raise UserError(f"{file}: is no JPEG file, which would say its quality; give --quality")
    luma = np.array(found[min(found)], np.float32).reshape(8, 8)
    return min(range(1, 101), key=lambda quality: float(np.abs(tables(quality)[0] - luma).sum()))


def _tables_of(opened: Any) -> dict[int, Any]:
    return getattr(opened, "quantization", None) or {}
