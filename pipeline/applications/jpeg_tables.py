"""The tables by which JPEG rounds, of a quality from 1 to 100; the quality that a file's own table is nearest to, and
how its pixels lie: blocks are those of the file, not of the image that a camera's mark turns upright.

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

TURNS = {  # orientation in EXIF: what turns the stored pixels upright, and what turns them back
    2: (Image.Transpose.FLIP_LEFT_RIGHT,) * 2,
    3: (Image.Transpose.ROTATE_180,) * 2,
    4: (Image.Transpose.FLIP_TOP_BOTTOM,) * 2,
    5: (Image.Transpose.TRANSPOSE,) * 2,
    6: (Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_90),
    7: (Image.Transpose.TRANSVERSE,) * 2,
    8: (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270),
}


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


def turn_of(file: Path, content: bytes | None = None) -> int:
    """The EXIF orientation of a sound image's file, of `TURNS` or 1 for none; 1 where the file is no JPEG, whose pixels
    lie as the image does.

    content: what the file holds, where it has been read."""
    with Image.open(file if content is None else io.BytesIO(content)) as opened:
        turn = opened.getexif().get(0x0112, 1) if opened.format in ("JPEG", "MPO") else 1
    return turn if turn in TURNS else 1


def turned(pixels: Array, turn: int, upright: bool) -> Array:
    """Pixels uint8 [H, W, C] as an image shows them (`upright`), or as they lie in a file of the orientation `turn`."""
    if turn == 1:
        return pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    found = np.asarray(image.transpose(TURNS[turn][0 if upright else 1]))
    return found[..., None] if found.ndim == 2 else found


def _tables_of(opened: Any) -> dict[int, Any]:
    return getattr(opened, "quantization", None) or {}
