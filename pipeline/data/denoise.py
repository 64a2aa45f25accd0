"""What filters do to images, beside each other: PSNR against clean originals, and one picture. For `ldm denoise`.

The filters are `filters.py`; noise is added here only to images that are taken for clean.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipeline.data import filters, transforms
from pipeline.data.folders import walk
from pipeline.data.order import Draw, draw_batch
from pipeline.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.schema.filters import Filter

Array = np.ndarray[Any, np.dtype[Any]]
SHOWN = 256  # pixels of an image a side that the picture shows, around its middle
LEAST = 128  # pixels a side to which small images are enlarged
MOST_PIXELS = 50_000_000
DEFAULT = ("gaussian:sigma=0.7", "gaussian:sigma=1.5", "median:size=3", "median:size=5", "wavelet")


@dataclass(frozen=True)
class Compared:
    """Images before and after each filter. names: the columns after `clean`; images: a list by image of its columns;
    psnr: mean over the images of each column in dB, or None without clean originals; noise: mean estimated level."""

    names: list[str]
    images: list[list[Image.Image]]
    clean: list[Image.Image] | None
    psnr: list[float] | None
    noise: float

    @property
    def best(self) -> int | None:
        """The column with the highest PSNR; 0 is the image as given."""
        return None if self.psnr is None else int(np.argmax(self.psnr))


def parse(text: str) -> Filter:
    """A filter from KIND or KIND:KEY=VALUE,KEY=VALUE with the keys of `data.filters`. Raises UserError."""
    from pipeline.schema.filters import Filter

    kind, _, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",") if pair]
    values = {"kind": kind, **{key.strip(): value.strip() for key, _, value in pairs}}
    try:
        return TypeAdapter[Any](Filter).validate_python(values)  # type: ignore[no-any-return]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"filter {text!r}: {key + ': ' if key else ''}{first['msg']}; expected one such as {', '.join(DEFAULT[1:])}"
        ) from None


def name(one: Filter) -> str:
    """A filter in a few words: its kind, its size, and the options that are not the default."""
    sizes = {"gaussian": "sigma", "median": "size", "wavelet": "wavelet"}
    values = one.model_dump(exclude={"kind"})
    usual = {key: field.default for key, field in type(one).model_fields.items()}
    shown = [f"{key} {value}" for key, value in values.items() if key == sizes[one.kind] or value != usual[key]]
    shown = [text.removeprefix("wavelet ") for text in shown]
    return f"{one.kind} ({', '.join(shown)})"


def load(path: Path, channels: int | None, count: int) -> dict[str, Image.Image]:
    """By name without extension: the image at `path`, or the first `count` of a folder.

    Gray where a file is gray, unless `channels` (1 or 3) says. UserError for a path without images, a damaged image.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: give an image or a folder of images")
    files = [path]
    if path.is_dir():
        walked = walk(path)
        files = sorted(path / file for file in walked.files)[:count]
        if not files:
            others = f"; there are {walked.left_out}" if walked.left_out else ""
            raise UserError(f"{path} holds no images (of {', '.join(transforms.FORMATS)}){others}")
    images = {}
    for file in files:
        try:
            image = transforms.decode(file.read_bytes(), 3, (255, 255, 255), MOST_PIXELS)
        except transforms.BadImage as error:
            raise UserError(f"{file}: {error}") from None
        red, green, blue = image.split()
        gray = red.tobytes() == green.tobytes() == blue.tobytes() if channels is None else channels == 1
        key = file.relative_to(path).with_suffix("").as_posix() if path.is_dir() else file.stem
        images[key] = image.convert("L") if gray else image
    return images


def add_noise(image: Image.Image, sigma: float, seed: int, number: int) -> Image.Image:
    """The image with white Gaussian noise of `sigma` grey levels, rounded and clipped; a function of (seed, number)."""
    from PIL import Image

    pixels = np.asarray(image).astype(np.float64)
    noise = draw_batch(seed, "denoise", [number], [Draw("noise", "normal", pixels.shape)])["noise"][0]
    return Image.fromarray(np.clip(np.rint(pixels + sigma * noise), 0, 255).astype(np.uint8))


def psnr(image: Image.Image, clean: Image.Image) -> float:
    """10 log10(255^2 / mean squared difference), in dB; 99 for equal images."""
    error = float(((np.asarray(image).astype(np.float64) - np.asarray(clean)) ** 2).mean())
    return 10 * float(np.log10(255**2 / error)) if error > 0 else 99.0


def compare(
    given: dict[str, Image.Image], clean: dict[str, Image.Image] | None, chosen: Sequence[Sequence[Filter]]
) -> Compared:
    """Each of `chosen` (a chain of filters) on each image; `clean` holds an original of the same size by each name.

    Raises UserError where an original is missing or of another size.
    """
    for key, image in given.items():
        original = (clean or given).get(key)
        if original is None or original.size != image.size:
            had = "there is none" if original is None else f"it has {original.size}, not {image.size} pixels"
            raise UserError(f"the clean original of {key}: {had}; names without extension must agree, and sizes")
    rows = [[image, *(filters.apply(image, chain) for chain in chosen)] for image in given.values()]
    originals = [clean[key].convert(given[key].mode) for key in given] if clean is not None else None
    figures = None
    if originals is not None:
        each = [[psnr(image, original) for image in row] for row, original in zip(rows, originals, strict=True)]
        figures = [float(value) for value in np.mean(each, axis=0)]
    planes = [plane for image in given.values() for plane in image.split()]
    levels = [filters.noise_level(np.asarray(plane).astype(np.float64)) for plane in planes]
    names = ["as given", *(" + ".join(name(one) for one in chain) for chain in chosen)]
    return Compared(names, rows, originals, figures, float(np.mean(levels)))


def picture(compared: Compared) -> Image.Image:
    """A row an image, a column a filter, names and mean PSNR above: RGB. Of large images the middle is shown."""
    from PIL import Image, ImageDraw, ImageFont

    columns, titles = list(zip(*compared.images, strict=True)), compared.names
    subtitles = [f"{value:.2f} dB" for value in compared.psnr] if compared.psnr else [""] * len(titles)
    if compared.clean is not None:
        columns, titles, subtitles = [tuple(compared.clean), *columns], ["clean", *titles], ["", *subtitles]
    shown = [[_view(image) for image in column] for column in columns]
    width = max(160, *(image.width for column in shown for image in column))
    heights = [max(column[row].height for column in shown) for row in range(len(compared.images))]
    sheet = Image.new("RGB", ((width + 8) * len(shown), 44 + sum(heights) + 8 * len(heights)), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for x, (title, subtitle, column) in enumerate(zip(titles, subtitles, shown, strict=True)):
        lines = [*textwrap.wrap(title, width // 7, max_lines=2, placeholder=" ..."), subtitle]
        draw.multiline_text((x * (width + 8) + 4, 0), "\n".join(lines), fill=(0, 0, 0), font=font, spacing=2)
        y = 44
        for image, height in zip(column, heights, strict=True):
            sheet.paste(image, (x * (width + 8) + 4, y))
            y += height + 8
    return sheet


def _view(image: Image.Image) -> Image.Image:
    """The middle of an image, enlarged by a whole factor where it is small."""
    from PIL import Image

    width, height = min(image.width, SHOWN), min(image.height, SHOWN)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    cut = image.crop((left, top, left + width, top + height)).convert("RGB")
    factor = max(1, -(-LEAST // min(width, height)))
    return cut.resize((width * factor, height * factor), Image.Resampling.NEAREST)
