"""Pictures of where conditions act: heat over an image, and sheets of cells with text above them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

from pipeline.data.pictures import Images

Array = np.ndarray[Any, np.dtype[Any]]
Cell = tuple[str, Images | None]  # what stands above an image uint8 [H, W, C], and the image; none: a free place
SIDE = 128  # pixels: small images are enlarged by a whole factor to this at least
LINES, LINE, GAP = 2, 14, 4  # of text above a cell; pixels of a line, between cells
# black, violet, red, orange, pale yellow: each lighter than the one before, also to who sees no colours
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)


def heat(image: Images, values: Array, least: float = 0.0) -> Images:
    """An image uint8 [H, W, C] in gray with a map [h, w] over it in colours, uint8 [H, W, 3]: from `least`, dark, to
    the map's largest value, light. The map is brought to the image's size by straight lines between its places."""
    given = torch.from_numpy(np.asarray(values, np.float32))[None, None]
    wide = functional.interpolate(given, image.shape[:2], mode="bilinear")[0, 0].numpy().astype(np.float64)
    reach = float(np.max(values)) - least
    share = np.clip((wide - least) / reach, 0, 1) if reach > 0 else np.zeros_like(wide)
    colour = np.stack([np.interp(share, np.linspace(0, 1, len(HEAT)), HEAT[:, c]) for c in range(3)], axis=-1)
    gray = image.mean(-1, dtype=np.float64)[..., None]
    found: Images = np.rint(0.35 * gray + 0.65 * colour).astype(np.uint8)
    return found


def sheet(rows: Sequence[Sequence[Cell]]) -> Images:
    """Rows of cells, images of one size, as one picture uint8 [h, w, 3]; text is cut after two lines."""
    first = next(image for row in rows for _, image in row if image is not None)
    factor = max(1, -(-SIDE // min(first.shape[:2])))
    height, width = first.shape[0] * factor, first.shape[1] * factor
    above = LINES * LINE
    across, down = max(map(len, rows)) * (width + GAP) - GAP, len(rows) * (above + height + GAP) - GAP
    page = Image.new("RGB", (across, down), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for y, row in enumerate(rows):
        for x, (text, image) in enumerate(row):
            left, top = x * (width + GAP), y * (above + height + GAP)
            room = {"width": width // 6, "max_lines": max(1, LINES - text.count("\n")), "placeholder": " ..."}
            lines = [part for line in text.split("\n") for part in textwrap.wrap(line, **room)]
            pen.multiline_text((left, top + above - 2), "\n".join(lines), "black", font, anchor="ld", spacing=1)
            if image is not None:
                cell = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
                page.paste(cell.resize((width, height), Image.Resampling.NEAREST), (left, top + above))
    return np.asarray(page)


def under(sheets: Sequence[Images]) -> Images:
    """Pictures uint8 [h, w, 3] under each other, white beside the narrow ones."""
    width = max(one.shape[1] for one in sheets)
    padded = [np.pad(one, ((0, 2 * GAP), (0, width - one.shape[1]), (0, 0)), constant_values=255) for one in sheets]
    return np.concatenate(padded)
