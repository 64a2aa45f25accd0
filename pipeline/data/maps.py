"""What a spatial condition's value is: a picture as a map on the grid of the latents, and a row of a tensor.

A map is uint8 [K, S, S] of the square in the middle of the picture, which is how the image beside it is cut; S is side
times detail. options: of one condition, as a model has them: {channels, side, background}, and {detail} where it is
not 1. How maps of a data set lie on disk is in `map_shards.py`, what a network makes of the rows in
`models/conditioning/spatial.py`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import transforms
from pipeline.data.transforms import BadImage

if TYPE_CHECKING:
    from PIL import Image

Array = np.ndarray[Any, np.dtype[Any]]
Options = Mapping[str, Any]
PACKED = "data:image/png;base64,"  # how a map is written in JSON (RFC 2397): browsers show it
MAX_PIXELS = 50_000_000  # of a picture in a request, as `data.max_pixels`


def sides(options: Options) -> int:
    """S, the side of a map."""
    return int(options["side"] * options.get("detail", 1))


def reduced(image: Image.Image, options: Options) -> Array:
    """The map uint8 [K, S, S] of a decoded picture (mode L or RGB): its middle square, each place the mean of the
    pixels that it covers; of fewer pixels than places, the nearest one."""
    from PIL import Image

    width, height = image.size
    edge, side = min(width, height), sides(options)
    left, top = (width - edge) / 2, (height - edge) / 2
    box = (left, top, left + edge, top + edge)
    return transforms.to_array(image.resize((side, side), Image.Resampling.BOX, box=box))


def read(content: bytes, options: Options, max_pixels: int, extension: str | None = None, key: bool = True) -> Array:
    """The map of a picture's file, opened as carefully as images are (`transforms.decode`, also of `key`). Raises
    BadImage."""
    background = tuple(options["background"])
    return reduced(transforms.decode(content, options["channels"], background, max_pixels, extension, key), options)


def row(given: Array | None, options: Options) -> Array:
    """A map, or none, as float32 [K detail^2 + 1, side, side]: values in [-1, 1], those that lie in a place of the
    latents as its channels (of each of the K, row by row), and 1 where it is told; zeros for none."""
    side, detail = options["side"], options.get("detail", 1)
    channels = options["channels"] * detail**2
    found = np.zeros((channels + 1, side, side), np.float32)
    if given is not None:
        cells = given.reshape(-1, side, detail, side, detail).transpose(0, 2, 4, 1, 3)  # [K, d, d, side, side]
        found[:channels] = cells.reshape(channels, side, side).astype(np.float32) / 127.5 - 1
        found[channels] = 1.0
    return found


def null_rows(spatial: Mapping[str, Options]) -> dict[str, Array]:
    """The row of each map that is not told."""
    return {name: row(None, options) for name, options in spatial.items()}


def packed(given: Array) -> str:
    """A map as text, without loss."""
    from PIL import Image

    image = Image.fromarray(given[0] if len(given) == 1 else np.ascontiguousarray(given.transpose(1, 2, 0)))
    return PACKED + base64.b64encode(transforms.to_png(image)).decode()


def taken(value: Any, options: Options) -> Array:
    """The map of whatever a person gives: a path, a packed map, a Pillow image, an array [h, w] or [h, w, c] of bytes,
    of booleans, or of numbers from 0 to 1. ValueError for what is none of these, and for a file that is no picture."""
    from PIL import Image

    try:
        if isinstance(value, str) and value.startswith(PACKED):
            return read(
                base64.b64decode(value.removeprefix(PACKED), validate=True), options, MAX_PIXELS, "png", key=False
            )
        if isinstance(value, (str, Path)):
            return read(Path(value).read_bytes(), options, MAX_PIXELS, Path(value).suffix[1:].lower(), False)
        background = tuple(options["background"])
        if isinstance(value, Image.Image):
            return reduced(transforms.to_mode(value, options["channels"], background), options)
        return reduced(transforms.from_array(_bytes(np.asarray(value)), options["channels"], background), options)
    except BadImage as error:
        raise ValueError(f"{_shown(value)}: {error}") from None
    except OSError as error:
        raise ValueError(f"{_shown(value)}: {error.strerror or error}; give a picture's path") from None
    except binascii.Error:
        raise ValueError("a packed map that is not whole") from None


def _bytes(pixels: Array) -> Array:
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)) or not pixels.size:
        raise ValueError(f"an array of shape {list(pixels.shape)}; expected [h, w], or [h, w, c] of 1, 3 or 4 channels")
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool or np.issubdtype(pixels.dtype, np.floating):
        values = pixels.astype(np.float64)
        if np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1:
            return np.rint(values * 255).astype(np.uint8)
    raise ValueError(f"an array of {pixels.dtype}; expected bytes, booleans, or numbers from 0 to 1")


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, (str, Path)) and not str(value).startswith(PACKED) else "a picture"
