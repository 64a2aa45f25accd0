""".npy members of WebDataset tars as images, with `data.values`: checked by their header, then read. Which members of a
tar are images is `index_tars.py`'s, files of arrays are `raster_files.py`'s."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from pipeline.data.raster_files import Array, by_bands, fitting, reading, small
from pipeline.data.transforms import BadImage, Bands, prepare, to_array

if TYPE_CHECKING:
    from pipeline.schema.data import Data, Shape

MEMBER = "npy"  # which member of a sample is its image, unless `data.source.image` says another


def values_of(content: bytes, data: Data) -> Array:
    """Values [C, h, w] of `data.values.dtype` of a .npy file's bytes: of one image [h, w], or with its bands first or
    last. Its header is held against `data.max_pixels` and its own length before values are read; one of Python's
    objects (a pickle) is never opened. Raises BadImage."""
    file = io.BytesIO(content)
    shape, fortran, dtype = header(file)
    if dtype.kind not in "biuf":
        raise BadImage("undecodable", f"an array of {dtype}, expected one of numbers")
    count, start = math.prod(shape), file.tell()
    if min(shape, default=0) < 1:
        raise BadImage("undecodable", f"an array of {list(shape)}, which holds nothing")
    small(0, 0, count, data)  # before numpy makes anything of such a shape
    planned = by_bands(np.broadcast_to(np.uint8(0), shape), data.channels).shape
    small(planned[2], planned[3], count, data)
    if planned[0] != 1:
        raise BadImage("several images", f"an array of {list(shape)}; expected one image of {data.channels} bands")
    if count * dtype.itemsize != len(content) - start:
        raise BadImage("truncated", f"{len(content) - start:,} bytes of values, and {list(shape)} {dtype} has others")
    flat = np.frombuffer(content, dtype, count, start)
    return fitting(by_bands(flat.reshape(shape, order="F" if fortran else "C"), data.channels)[0], data)


def header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it lies in Fortran's order, and type of a .npy file, which is then read up to its values. Raises
    BadImage."""
    with reading("no .npy member"):
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):  # 3.0 is written for names of fields beyond Latin-1
            raise BadImage("undecodable", f".npy of version {version[0]}.{version[1]}: expected numbers")
        head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = head(file)
    return shape, fortran, dtype


def load(content: bytes, data: Data, shape: Shape | None = None) -> Array:
    """What models see of a member, as `transforms.load_with_margin` gives it of images."""
    return to_array(prepare(Bands(values_of(content, data)), data, shape))
