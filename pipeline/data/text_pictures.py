"""A picture of texts, for the pages where a run's pictures are shown. The texts themselves are in files."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

COLUMNS, LINES = 100, 200  # letters of a line, lines at most
FONT, MARGIN = 14, 8  # pixels


def picture(texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Texts, each on lines of its own, in black on white: uint8 [H, W, 1]. Letters that Pillow's own font has not
    (those that are not Latin) are boxes."""
    from PIL import Image, ImageDraw, ImageFont

    lines = [line for text in texts for line in (textwrap.wrap(text, COLUMNS) or [""])][:LINES]
    font = ImageFont.load_default(FONT)
    whole = "\n".join(lines)
    right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((MARGIN, MARGIN), whole, font=font)[2:]
    image = Image.new("L", (int(right) + MARGIN, int(bottom) + MARGIN), 255)
    ImageDraw.Draw(image).multiline_text((MARGIN, MARGIN), whole, fill=0, font=font)
    return np.asarray(image)[..., None]
