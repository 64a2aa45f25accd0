"""TIFF, PNG and .npy files of any depth: what images each holds, and their values. DICOM is `dicom.py`'s, NIfTI
`nifti.py`'s; which files there are, and what they are called, is `rasters.py`'s.

tifffile reads TIFF, since Pillow cuts 16-bit colour to 8 bits, refuses more than four bands, and turns white-is-zero
around at 8 bits and not at 16. LZW, PackBits and predictor 3 need imagecodecs (the extra `geo`), as 16-bit colour PNG.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import bounded
from pipeline.data.transforms import BadImage, check_png
from pipeline.schema.values import MOST_CHANNELS

if TYPE_CHECKING:
    from pipeline.schema.data import Data

Array = np.ndarray[Any, np.dtype[Any]]
WITHOUT_DATA = "without data"  # the reason of tiles that are left out, and are no fault of the source
DEFLATE, LZMA = (8, 32946, 50013), 34925  # compressions
NODATA, METADATA = 42113, 42112  # GDAL's tags (gdal.org/drivers/raster/gtiff.html)


@dataclass(frozen=True)
class Held:
    """What a file holds. count: images; read: the values [C, H, W] of one of them, as the file has them in its unit,
    BadImage where there are none. subject: whom they are of (identifying: for comparing only). blocks: of tiles the
    block of each. sides: (height, width) of what tiles are cut of, as the header says; () of medical files. others:
    images of a TIFF file that are of other sizes or types than those read, and no overviews. slices: of a volume, where
    a file holds several, one after the other."""

    count: int
    read: Callable[[int], Array]
    subject: str | None = None
    blocks: tuple[str, ...] = ()
    sides: tuple[int, ...] = ()
    others: int = 0
    slices: int | None = None


@contextmanager
def reading(what: str) -> Iterator[None]:
    """The readers of files without their words; what they raise becomes a BadImage that names no value, since both may
    hold a file's name, or a patient's attributes."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "tifffile", "nibabel")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadImage:
        raise
    except Exception as error:  # a damaged file raises whatever its reader meets first
        raise BadImage("undecodable", f"{what} ({type(error).__name__})") from None
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def open_npy(path: Path, data: Data) -> Held:
    """An array [h, w], or with channels on either side of it; of one more dimension: several images."""
    whole = numbers(path)
    return _held(lambda: by_bands(whole, data.channels), by_bands(whole, data.channels).shape, data)


def numbers(path: Path) -> Array:
    """The array of a .npy file, in its file until it is used. BadImage for what is none of numbers."""
    with reading("no .npy file"):
        whole = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(whole, np.ndarray) or whole.dtype.kind not in "biuf" or not whole.size:
        raise BadImage("undecodable", "no array of numbers")
    return whole


def by_bands(array: Array, channels: int) -> Array:
    """[n, C, h, w] of [h, w], [n, h, w], or with C first or last of the image's own dimensions. BadImage for others."""
    shape = array.shape
    if channels == 1 and array.ndim in (2, 3) and not (array.ndim == 3 and shape[2] == 1):
        return array.reshape(-1, 1, *shape[-2:])
    if array.ndim in (3, 4) and shape[-1] == channels and shape[-3] != channels:
        return np.moveaxis(array, -1, -3).reshape(-1, channels, *shape[-3:-1])
    if array.ndim in (3, 4) and shape[-3] == channels and (shape[-1] != channels or array.ndim == 3):
        return array.reshape(-1, *shape[-3:])
    raise BadImage("other bands", f"an array of {list(shape)}; expected images of {channels} bands (`data.channels`)")


def open_png(path: Path, data: Data) -> Held:
    """A PNG file of 8 or 16 bits a value, gray, RGB or with transparency as one more band."""

    def read() -> Array:
        from PIL import Image

        content = path.read_bytes()
        if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 26:
            raise BadImage("undecodable", "no PNG file")
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        depth, colour = content[24], content[25]
        small(height, width, 1, data)
        if colour == 3 or depth not in (8, 16):
            raise BadImage("undecodable", "a palette, or less than 8 bits a value: these are no measured values")
        check_png(content)
        if depth == 16 and colour != 0:  # Pillow gives 8 of these 16 bits, and says nothing
            decode = imagecodecs("16-bit colour PNG").png_decode
            with reading("its pixels cannot be read"):
                pixels = decode(content)
        else:
            with reading("its pixels cannot be read"), Image.open(path) as image:
                pixels = np.asarray(image)
        return np.atleast_3d(pixels).transpose(2, 0, 1)[None]

    try:
        with open(path, "rb") as file:
            head = file.read(24)
    except OSError as error:
        raise BadImage("undecodable", error.strerror or "cannot be read") from None
    width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
    return _held(read, (1, data.channels, height, width), data)


def layout(path: Path) -> tuple[tuple[int, int, int], str]:
    """(bands, height, width) of a TIFF file's images, and the type of its values, by its header. Raises BadImage."""
    import tifffile

    with reading("no TIFF file"), tifffile.TiffFile(path) as file:
        series = file.series[0]
        sides: dict[str, int] = dict(zip(series.axes, series.shape, strict=True))
        return (sides.get("S") or sides.get("C") or 1, sides["Y"], sides["X"]), str(series.dtype)


def open_tiff(path: Path, data: Data) -> Held:
    """A TIFF file: its pages, or bands on several pages, or one scene. The first series; overviews are left aside."""
    import tifffile

    with reading("no TIFF file"), tifffile.TiffFile(path) as file:
        series, page = file.series[0], file.pages.first
        shape, axes, photometric = series.shape, series.axes, int(page.photometric)
        bits = page.bitspersample
        nodata = page.tags.valueof(NODATA)
        known = str(page.tags.valueof(METADATA) or "")
        height, width = shape[axes.index("Y")], shape[axes.index("X")]
        more = [one.keyframe for one in file.series[1:]]
        others = sum(not (page is None or page.is_reduced or page.is_mask) for page in more)
        part = math.prod(page.tile) if page.is_tiled else 0  # one tile is decoded whole, whatever the image's sides
    if photometric >= 3:  # a palette, a mask, CMYK, YCbCr, ...
        raise BadImage("undecodable", f"photometric interpretation {photometric}: these are no measured values")
    small(height, width, max(math.prod(shape), part), data)

    def whole() -> Array:
        with reading("its pixels cannot be read"):
            _check_segments(path)
            try:
                values: Array = tifffile.imread(path, series=0)
            except (ValueError, ModuleNotFoundError) as error:  # the latter of zstd, which newer Pythons have
                if "imagecodecs" in str(error) or isinstance(error, ModuleNotFoundError):
                    imagecodecs("a TIFF of this compression")
                raise
        values = ordered(values, axes, data.channels)
        if photometric == 0:  # white is zero: stored values count down from white
            if values.dtype.kind not in "ub":
                raise BadImage("undecodable", "white is zero, of signed or broken numbers: white is not known")
            values = (1 << bits) - 1 - values.astype(np.int64)
        return values

    missing = None if nodata is None else _number(str(nodata))
    if missing is not None and photometric == 0:  # as its values are turned
        missing = (1 << bits) - 1 - missing
    scales = scaling(known, data.channels) if getattr(data.source, "rescale", True) else None
    planned = ordered(np.broadcast_to(np.uint8(0), shape), axes, data.channels).shape
    return replace(_held(whole, planned, data, missing, scales), others=others)


def _check_segments(path: Path) -> None:
    """BadImage for a strip or tile of the first series of a TIFF file that is more than its header says. imagecodecs is
    told how much room there is; what tifffile has in place of it is not."""
    import tifffile

    if importlib.util.find_spec("imagecodecs") is not None:
        return
    with tifffile.TiffFile(path) as file, open(path, "rb") as content:
        for page in file.series[0].pages:
            if page is None or page.keyframe.compression not in (*DEFLATE, LZMA):
                continue
            most = 2 * math.prod(page.keyframe.chunks) * page.keyframe.dtype.itemsize + bounded.HARMLESS
            deflated = page.keyframe.compression != LZMA
            over: Callable[[bytes, int], bool] = bounded.inflates_over if deflated else bounded.unpacks_over
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                if deflated and count * bounded.DEFLATED <= bounded.HARMLESS:
                    continue
                content.seek(offset)
                if over(content.read(count), most):
                    raise BadImage("oversized", f"a strip or tile of {count:,} bytes that becomes over {most:,}")


def ordered(values: Array, axes: str, channels: int) -> Array:
    """[n, C, h, w] of a TIFF series, by tifffile's letters: Y, X, S (samples) or C (channels), others count images."""
    bands = next((letter for letter in "SC" if letter in axes), None)
    places = [axes.index(letter) for letter in (*([bands] if bands else []), "Y", "X")]
    rest = [place for place in range(len(axes)) if place not in places]
    moved = values.transpose(rest + places)
    height, width = moved.shape[-2:]
    if bands:
        return moved.reshape(-1, moved.shape[-3], height, width)
    moved = moved.reshape(-1, height, width)
    return moved[None] if len(moved) == channels else moved[:, None]  # a band a page, or an image a page


def scaling(metadata: str, channels: int) -> tuple[Array, Array] | None:
    """Scale and offset [C, 1, 1] of GDAL's metadata of each band; None where there are none."""
    found: dict[str, dict[int, float]] = {"SCALE": {}, "OFFSET": {}}
    for name, band, value in re.findall(r'<Item name="(SCALE|OFFSET)" sample="(\d+)"[^>]*>([^<]*)<', metadata):
        if (number := _number(value)) is None or not math.isfinite(number):
            raise BadImage("undecodable", f"its {name.lower()} is no number; `data.source.rescale: false` needs none")
        found[name][int(band)] = number
    if not found["SCALE"] and not found["OFFSET"]:
        return None
    scale, offset = (
        np.array([found[name].get(band, usual) for band in range(channels)]).reshape(-1, 1, 1)
        for name, usual in (("SCALE", 1.0), ("OFFSET", 0.0))
    )
    return scale, offset


def imagecodecs(what: str) -> Any:
    """The module. BadImage where it is not installed."""
    if importlib.util.find_spec("imagecodecs") is None:
        raise BadImage("undecodable", f"{what} needs imagecodecs: install the extra `geo`")
    return importlib.import_module("imagecodecs")


# ---- tiles -----------------------------------------------------------------------------------------------------------


def _held(
    whole: Callable[[], Array],
    shape: tuple[int, ...],
    data: Data,
    missing: float | None = None,
    scales: tuple[Array, Array] | None = None,
) -> Held:
    """Images, or tiles of them: `whole` gives [n, C, h, w], of this shape, once."""
    tile, block = getattr(data.source, "tile", None), getattr(data.source, "block", 1)
    stride = getattr(data.source, "stride", None)
    loaded = cache(whole)
    corners: list[tuple[int, int, int]] = [(i, 0, 0) for i in range(shape[0])]
    blocks: list[str] = []
    if tile is not None:
        rows, columns = shape[2] // tile, shape[3] // tile
        corners = [(i, r * tile, c * tile) for i in range(shape[0]) for r in range(rows) for c in range(columns)]
        if stride is not None:
            down, across = (_overlapping(count, tile, block, stride) for count in (rows, columns))
            corners = [(i, y, x) for i in range(shape[0]) for y in down for x in across]
        blocks = [f"{i}-{y // tile // block}-{x // tile // block}" for i, y, x in corners]
        if not corners:
            raise BadImage("too small", f"{shape[2]}x{shape[3]} (height x width) holds no tile of {tile}")

    def read(number: int) -> Array:
        i, y, x = corners[number]
        values = loaded()[i]
        values = values if tile is None else values[:, y : y + tile, x : x + tile]
        if missing is not None and (np.isnan(values) if np.isnan(missing) else values == missing).any():
            raise BadImage(WITHOUT_DATA, f"places without data ({missing:g})")
        return np.asarray(values if scales is None else values * scales[0] + scales[1])

    return Held(len(corners), read, blocks=tuple(blocks), sides=tuple(shape[2:]))


def _overlapping(count: int, tile: int, block: int, stride: int) -> list[int]:
    """Where tiles of a side of `count` whole ones begin, `stride` pixels apart: each lies in one block."""
    ends = [(first * tile, min(first + block, count) * tile) for first in range(0, count, block)]
    return [at for begin, end in ends for at in range(begin, end - tile + 1, stride)]


def small(height: int, width: int, values: int, data: Data) -> None:
    """BadImage for more pixels than `data.max_pixels`, or values than these have in the most channels."""
    if height * width > data.max_pixels or values > MOST_CHANNELS * data.max_pixels:
        raise BadImage(
            "oversized",
            f"{width}x{height}, {values:,} values: over data.max_pixels = {data.max_pixels} (values: {MOST_CHANNELS} "
            "times that)",
        )


def _number(text: str) -> float | None:
    try:
        return float(text.strip().strip("\0"))
    except ValueError:
        return None


# ---- what all files come to ------------------------------------------------------------------------------------------


def fitting(values: Array, data: Data) -> Array:
    """Values [C, h, w] as the config's dtype, equal in value (float64 is rounded to float32). BadImage where they have
    other bands, are not finite, or do not fit the dtype."""
    assert data.values is not None
    kind = np.dtype(data.values.dtype)
    if values.ndim != 3 or len(values) != data.channels:
        raise BadImage("other bands", f"{len(values)} bands, and `data.channels` is {data.channels}")
    if values.dtype.kind not in "biuf" or not values.size:
        raise BadImage("undecodable", f"values of type {values.dtype}")
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        raise BadImage("not finite", f"{(~finite).sum():,} of {values.size:,} values are NaN or infinite")
    if kind.kind in "iu":
        limits, low, high = np.iinfo(kind), values.min(), values.max()
        if low < limits.min or high > limits.max:
            raise BadImage("other values", f"values from {low:g} to {high:g} do not fit {kind} (`data.values.dtype`)")
        if values.dtype.kind == "f" and (values != np.rint(values)).any():
            raise BadImage("other values", f"values with fractions do not fit {kind} (`data.values.dtype`)")
    with np.errstate(over="ignore"):
        kept = values.astype(kind)
    if kind.kind == "f" and (not np.isfinite(kept).all() or (values.dtype.kind in "iu" and (kept != values).any())):
        raise BadImage("other values", f"values up to {abs(values).max():g} do not fit {kind} (`data.values.dtype`)")
    return np.ascontiguousarray(kept)
