"""From the bytes of an image file to arrays [C, H, W]: decode, resize, crop, flip. Opens no files.

They are uint8; of other depths (`Bands`) each value keeps its type and its unit.

Whatever is wrong with an image is a `BadImage` with a reason; what follows from it is decided by ingest and loader.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import sys
import warnings
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipeline.data.order import Draw, draws

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.schema.clips import Clip
    from pipeline.schema.data import Data, Shape

Array = np.ndarray[Any, np.dtype[Any]]
Picture = TypeVar("Picture", "Image.Image", "Bands")
MARGIN = 1.125  # with random crops the shorter side is kept at size * MARGIN: an eighth to move in
FORMATS = {  # extension -> the names by which Pillow may call what it holds
    "jpg": {"JPEG", "MPO"}, "jpeg": {"JPEG", "MPO"}, "png": {"PNG"}, "webp": {"WEBP"}, "bmp": {"BMP"}, "gif": {"GIF"},
    "tif": {"TIFF"}, "tiff": {"TIFF"}, "ppm": {"PPM"}, "pgm": {"PPM"},
    "avif": {"AVIF"}, "jfif": {"JPEG", "MPO"}, "jpe": {"JPEG", "MPO"},
}  # fmt: skip
HEIF = ("heic", "heif", "hif")  # read where the package pillow-heif is (the extra `heif`)
if importlib.util.find_spec("pillow_heif"):
    FORMATS |= {extension: {"HEIF"} for extension in HEIF}


class Bands:
    """Values [C, H, W] of any depth and number of bands, with what resizing needs of a Pillow image."""

    def __init__(self, values: Array) -> None:
        self.values = values

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow has it."""
        return self.values.shape[2], self.values.shape[1]

    def resize(
        self, size: tuple[int, int], resample: Any, box: tuple[float, float, float, float] | None = None
    ) -> Bands:
        """Each band resized as a float32 image; whole numbers are rounded, and cut to what their type holds."""
        from PIL import Image

        kind = self.values.dtype
        bands = [Image.fromarray(band.astype(np.float32)).resize(size, resample, box=box) for band in self.values]
        made = np.stack([np.asarray(band) for band in bands])
        if kind.kind in "iu":
            made = np.rint(made).clip(np.iinfo(kind).min, np.iinfo(kind).max)
        return Bands(made.astype(kind))


class BadImage(Exception):
    """An image that cannot be used: `reason` is one of a few words to count by, the text says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def decode(
    content: bytes, channels: int, background: tuple[int, int, int], max_pixels: int, extension: str | None = None,
    key: bool = True,
) -> Image.Image:  # fmt: skip
    """Decode to a Pillow image of mode RGB (3 channels) or L (1), upright, without transparency.

    `background`: RGB 0-255 that transparent images are laid on. `extension` (no dot): refuse another format inside.
    `key`: whether the limit is that of a config, which the error then names.
    Raises BadImage with reason undecodable, truncated, oversized or wrongly named.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if content[4:8] == b"ftyp":
            open_heif()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images: the limit here is ours
            image: Image.Image = Image.open(io.BytesIO(content))
            width, height = image.size
            if width * height > max_pixels:
                most = f"data.max_pixels = {max_pixels}" if key else f"{max_pixels:,} pixels"
                raise BadImage("oversized", f"{width}x{height} is over {most}")
            if extension in FORMATS and image.format not in FORMATS[extension]:
                raise BadImage("wrongly named", f".{extension} holds {image.format}")
            image.load()
            if image.format == "PNG":
                check_png(content)
            image = ImageOps.exif_transpose(image)
            return to_mode(image, channels, background)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("oversized", str(error)) from error
    except UnidentifiedImageError:  # its own text holds an address in memory, another one each time
        raise BadImage("undecodable", "no known image format") from None
    except Exception as error:  # a damaged file raises whatever its decoder meets first
        reason = "truncated" if "truncated" in str(error).lower() or isinstance(error, EOFError) else "undecodable"
        raise BadImage(reason, f"{type(error).__name__}: {error}".replace("\n", " ")) from error


@lru_cache(maxsize=1)
def open_heif() -> bool:
    """Have Pillow read HEIF, if the package for it is there."""
    if not importlib.util.find_spec("pillow_heif"):
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True


def check_png(content: bytes) -> None:
    """Raise BadImage unless every chunk of a PNG has its checksum. Pillow passes over that of the pixels, and of the
    single bits that can be wrong in them one in twenty gives another picture (PNG specification, 5.3)."""
    at = 8
    while at < len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if zlib.crc32(content[at + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise BadImage("undecodable", f"wrong checksum of the bytes from {at} to {end}")
        if content[at + 4 : at + 8] == b"IEND":
            return
        at = end + 4
    raise BadImage("truncated", "the PNG has no end")


def to_mode(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """To RGB or L, 8 bits a channel: 16 bits scaled, palettes looked up, CMYK converted, transparency composed."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":  # 16-bit gray; Pillow has no 16-bit colour
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise BadImage("undecodable", f"{image.mode} pixels outside 16 bits have no known range")
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    return image.convert("RGB" if channels == 3 else "L")


def from_array(pixels: Array, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """An image, as `decode` gives it, of an array [h, w] or [h, w, 1, 3 or 4 (RGBA)], uint8 or uint16."""
    from PIL import Image

    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return to_mode(Image.fromarray(np.ascontiguousarray(pixels)), channels, background)


def shrink(image: Picture, shorter: int, square: bool) -> Picture:
    """Resize so that the shorter side is `shorter` pixels, antialiased (bicubic over the source pixels each covers);
    `square`: keep the centre only."""
    from PIL import Image

    width, height = image.size
    edge = min(width, height)
    if square:
        left, top = (width - edge) / 2, (height - edge) / 2
        if (width, height) == (shorter, shorter):
            return image
        box = (left, top, left + edge, top + edge)
        return image.resize((shorter, shorter), Image.Resampling.BICUBIC, box=box)
    if edge == shorter:
        return image
    size = (max(shorter, round(width * shorter / edge)), max(shorter, round(height * shorter / edge)))
    return image.resize(size, Image.Resampling.BICUBIC)


def cover(image: Picture, shape: Shape, whole: bool) -> Picture:
    """Resize so that `shape` (height, width) is just covered, antialiased as in `shrink`; not `whole`: keep the middle
    of that shape only."""
    from PIL import Image

    (height, width), (w, h) = shape, image.size
    if (w, h) == (width, height):
        return image
    if whole:
        scale = max(height / h, width / w)
        size = (max(width, round(w * scale)), max(height, round(h * scale)))
        return image if size == (w, h) else image.resize(size, Image.Resampling.BICUBIC)
    scale = min(h / height, w / width)  # source pixels a pixel
    left, top = (w - width * scale) / 2, (h - height * scale) / 2
    box = (max(0.0, left), max(0.0, top), min(float(w), w - left), min(float(h), h - top))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def stored_side(size: int, random_crop: bool) -> int:
    """The shorter side that is kept for training at `size` pixels."""
    return math.ceil(size * MARGIN) if random_crop else size


def to_array(image: Image.Image | Bands) -> Array:
    """uint8 [C, H, W] of an RGB or L image; of bands their values."""
    if isinstance(image, Bands):
        return image.values
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def crop_flip(pixels: Array, size: int | Shape, top: float, left: float, flip: bool) -> Array:
    """Cut `size` (side of a square, or height and width) out of [..., H, W] and mirror it; `top`, `left` in [0, 1)
    choose among all places evenly."""
    h, w = (size, size) if isinstance(size, int) else size
    height, width = pixels.shape[-2:]
    y, x = int(top * (height - h + 1)), int(left * (width - w + 1))
    cut = pixels[..., y : y + h, x : x + w]
    return cut[..., ::-1] if flip else cut


def window(frames: Array, clip: Clip, draw: float | None) -> Array:
    """The window [C, T, H, W] of all frames [C, F, H, W] of a clip. draw: in [0, 1), where it lies if that is random;
    None: where it lies in held-out clips."""
    room = frames.shape[1] - clip.frames
    if clip.start == "first":
        start = 0
    elif clip.start == "random" and draw is not None:
        start = int(draw * (room + 1))
    else:
        start = room // 2
    return frames[:, start : start + clip.frames]


def centre(pixels: Array, size: int | Shape) -> Array:
    """The middle of [C, H, W], of that size."""
    return crop_flip(pixels, size, 0.5, 0.5, False)


def centre_in(cell: Array, pixels: Array) -> None:
    """Lay [C, h, w] into the middle of [C, H, W], in place."""
    top, left = (outer - inner for outer, inner in zip(cell.shape[1:], pixels.shape[1:], strict=True))
    cell[:, top // 2 : top // 2 + pixels.shape[1], left // 2 : left // 2 + pixels.shape[2]] = pixels


def squared(pixels: Array, side: int) -> Array:
    """uint8 [C, h, w] stretched to [C, side, side], antialiased as in `shrink`."""
    from PIL import Image

    if pixels.shape[1:] == (side, side):
        return pixels
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return to_array(image.resize((side, side), Image.Resampling.BICUBIC))


def cut_views(pixels: Array, size: int | Shape, views: Sequence[str], key: str, clip: Clip | None = None) -> Array:
    """Versions of [C, H, W], uint8 [v, C, *size]: as_is (the middle), flip, crop, crop_flip. Of a clip [C, F, H, W]
    windows of it, [v, C, T, *size]; those of crops lie elsewhere.

    The place of a crop is drawn for the image's key and the view's number, whatever shard the image is in: a data set
    that grows leaves the latents of what was there as they are.
    """
    counter = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    cut = []
    for number, view in enumerate(views):
        top, left, start = 0.5, 0.5, None
        if view.startswith("crop"):
            spec = [Draw(name, "uniform") for name in ("top", "left", "start")]
            place = draws(0, f"latents/view {number}", counter, spec)
            top, left, start = (float(place[draw.name]) for draw in spec)
        part = pixels if clip is None else window(pixels, clip, start)
        cut.append(crop_flip(part, size, top, left, view.endswith("flip")))
    return np.stack(cut)


def prepare(image: Picture, data: Data, shape: Shape | None = None) -> Picture:
    """A decoded image at the size at which it is kept: square or of its bucket's `shape`, or, where crops are random,
    with a margin to crop in."""
    random_crop = data.augment.crop == "random"
    if shape is not None:
        kept = (stored_side(shape[0], random_crop), stored_side(shape[1], random_crop))
        return cover(image, kept, whole=random_crop)
    return shrink(image, stored_side(data.size, random_crop), square=not random_crop)


def load_with_margin(content: bytes, data: Data, shape: Shape | None = None) -> Array:
    """uint8 [C, H, W] of an image file, H and W at least `data.size`, or those of its bucket's `shape`; of values
    (`data.values`) their dtype; of a clip all its frames, [C, F, H, W]."""
    if data.clip is not None:  # a strip of squares that ingest made
        strip = to_array(decode(content, data.channels, data.background, sys.maxsize))
        return strip.reshape(len(strip), -1, strip.shape[2], strip.shape[2])
    if data.values is not None:
        return to_array(prepare(Bands(from_npy(content, data)), data, shape))
    return to_array(prepare(decode(content, data.channels, data.background, data.max_pixels), data, shape))


def load_image(content: bytes, data: Data) -> Array:
    """uint8 [C, size, size] of an image file: the centre, as it is encoded and validated. Raises BadImage."""
    return centre(load_with_margin(content, data), data.size)


def to_npy(values: Array) -> bytes:
    """The .npy file of an array, little-endian: the same bytes each time."""
    buffer = io.BytesIO()
    kept = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    np.lib.format.write_array(buffer, kept, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def from_npy(content: bytes, data: Data) -> Array:
    """Values [C, H, W] that `to_npy` wrote. Raises BadImage for others."""
    assert data.values is not None
    try:
        values: Array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BadImage("undecodable", f"no .npy member ({type(error).__name__})") from None
    if values.dtype != np.dtype(data.values.dtype) or values.ndim != 3 or len(values) != data.channels:
        raise BadImage("undecodable", f"{values.dtype}{list(values.shape)} is not what `data` says")
    return values


def to_png(image: Image.Image) -> bytes:
    """PNG bytes of an image: lossless, the same bytes each time."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
