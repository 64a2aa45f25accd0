"""A mask that a person paints over an image of the sampling page: a component of Streamlit around `mask_canvas.js`.

What comes back from the browser is checked as a file would be.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.data.pictures import Images
    from pipeline.data.transforms import Array

HTML = """
<div class="paint"><img class="picture" alt="the image"><canvas class="canvas" aria-label="Paint here"></canvas></div>
<div class="tools">
  <label>Brush <input class="brush" type="range" min="1" aria-label="Brush"></label>
  <label><input class="erase" type="checkbox"> Erase</label>
  <button class="clear" type="button">Clear</button>
</div>
"""
CSS = """
.paint { position: relative; width: 100%; max-width: 384px; line-height: 0; }
.paint img { width: 100%; image-rendering: pixelated; user-select: none; }
.paint canvas { position: absolute; inset: 0; width: 100%; height: 100%; opacity: 0.6; cursor: crosshair;
  touch-action: none; image-rendering: pixelated; }
.tools { display: flex; gap: 1rem; align-items: center; padding: 0.5rem 0; font: 0.875rem var(--st-font); }
"""
START = "data:image/png;base64,"
MOST = 4_000_000  # characters: a mask of a million pixels takes a hundredth of it


@cache
def _component() -> Any:
    import streamlit as st

    script = Path(__file__).with_suffix(".js").read_text()
    return st.components.v2.component("mask_canvas", html=HTML, css=CSS, js=script)


def painted(image: Images, key: str) -> Array | None:
    """Show an image [H, W, C] to paint over; the mask float32 [H, W] of 1 where it was, None where nothing is.

    UserError for an answer that is none of this image.
    """
    from pipeline.pages.widgets import png

    content, (height, width) = png(image), image.shape[:2]
    data = {
        "id": hashlib.sha256(content).hexdigest(),
        "image": START + base64.b64encode(content).decode(),
        "width": width,
        "height": height,
        "radius": max(1, min(height, width) // 10),
    }
    answer = _component()(key=key, data=data, default={"mask": None}, on_mask_change=lambda: None)
    return mask_of(answer.mask, data["id"], (height, width))


def mask_of(answer: Any, image: str, shape: tuple[int, int]) -> Array | None:
    """The mask [H, W] of what the browser answered; None where nothing is painted, or over an image before this one.

    image: the `id` that was sent with it. UserError for what is no mask of this shape.
    """
    from pipeline.applications.given_images import as_mask
    from pipeline.errors import UserError

    if answer is None:
        return None
    png = answer.get("png") if isinstance(answer, Mapping) else None
    if not isinstance(png, str) or not png.startswith(START) or len(png) > MOST:
        raise UserError("mask: the browser sent none that can be read; clear it, and paint again")
    if answer.get("id") != image:
        return None
    try:
        content = base64.b64decode(png.removeprefix(START), validate=True)
    except binascii.Error:
        raise UserError("mask: the browser sent none that can be read; clear it, and paint again") from None
    return as_mask("mask.png", content, shape, exact=True)
