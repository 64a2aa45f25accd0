"""Menus, sliders and fields of the sampling page that several of its tabs have, and pictures as they are shown.

What a file holds that a browser sent is read by `given_images.py`, as files of the verbs are.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.data.pictures import Images
    from pipeline.generate.generator import Generator

UNTOLD = "not told"
PLACES = 100  # of a slider over an attribute's range
SHOWN = 640  # pixels: a picture is enlarged, by a whole number, to at most this width
UPLOAD_MB = 20  # of a file: `serve.py` says it to the server
UPLOAD_PIXELS = 1024 * 1024  # of an image that is worked on at its own size: minutes on a CPU
TURN = Lock()  # held while images are made: one request at a time, whoever asks


@dataclass(frozen=True)
class Upload:
    """A file that a browser sent: its name, which is shown and never a path, and what it holds."""

    name: str
    content: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def image(self, channels: int, shape: tuple[int, int] | None) -> Images:
        """uint8 [H, W, C], as `given_images.read` has it. UserError for what is no sound image, or too large for the
        page."""
        from pipeline.applications.given_images import decoded
        from pipeline.errors import UserError

        pixels = decoded(self.name, self.content, channels, shape)
        if shape is None and pixels.shape[0] * pixels.shape[1] > UPLOAD_PIXELS:
            raise UserError(
                f"{self.name}: {pixels.shape[0]} x {pixels.shape[1]} pixels, and this page takes {UPLOAD_PIXELS:,}; "
                "use the command"
            )
        return pixels


def moving(clips: Images, rate: float) -> str:
    """Clips [n, T, H, W, C] side by side as an animated picture, in HTML: Streamlit's own pictures stand still."""
    from pipeline.data.pictures import grid
    from pipeline.generate.clip_samples import moving_grid

    width = grid(clips[:, 0]).shape[1]
    shown = width * max(1, SHOWN // width)
    data = base64.b64encode(moving_grid(clips, rate)).decode()
    return f'<img alt="samples" style="width:{shown}px;image-rendering:pixelated" src="data:image/webp;base64,{data}">'


def upload(label: str, key: str) -> Upload | None:
    """The field for an image's file; what was given."""
    import streamlit as st

    from pipeline.data.transforms import FORMATS

    file = st.file_uploader(label, sorted(FORMATS), key=key)
    return None if file is None else Upload(file.name, file.getvalue())


def conditions(model: Generator, key: str) -> dict[str, Any]:
    """Menus, sliders and fields of all that the model may be told; what is told, by name."""
    import streamlit as st

    told: dict[str, Any] = {}
    if model.classes:
        told["class"] = st.selectbox("class", model.classes, None, placeholder=UNTOLD, key=f"{key}/class")
    for name, own in model.options["condition"].get("attributes", {}).items():
        told[name] = attribute(name, own, f"{key}/{name}")
    if model.options["condition"].get("caption"):
        told["caption"] = st.text_input("caption", placeholder=UNTOLD, key=f"{key}/caption").strip() or None
    return {name: value for name, value in told.items() if value is not None}


def steps(usual: int) -> int:
    """The slider of the steps from noise to image."""
    import streamlit as st

    return int(st.slider("Steps", 2, 100, usual))


def guidance(model: Generator) -> dict[str, Any]:
    """The slider of the guidance scale, where the model can be guided: `guidance`, unless it is the model's own."""
    import streamlit as st

    from pipeline.generate.told import names

    usual = float(model.defaults["guidance"])
    free = names(model.options) and model.options["condition"].get("drop", 0) > 0
    if not free and model.defaults["guidance_kind"] != "autoguidance":
        return {}
    help_text = "1: as trained. Above: closer to what is told."
    value = round(float(st.slider("Guidance scale", 0.0, max(10.0, usual), usual, 0.1, help=help_text)), 2)
    return {"guidance": value} if value != usual else {}


def seed() -> int:
    """The field of the seed."""
    import streamlit as st

    return int(st.number_input("Seed", 0, None, 0, help="The same seed, the same image."))


def enlarged(image: Images, width: int = SHOWN // 2) -> Images:
    """An image [H, W, C] by a whole number larger, `width` pixels wide at most, as RGB [H, W, 3]."""
    import numpy as np

    times = max(1, width // image.shape[1])
    rgb = image if image.shape[2] == 3 else np.repeat(image, 3, 2)
    return np.repeat(np.repeat(rgb, times, 0), times, 1)


def png(image: Images) -> bytes:
    """A picture [H, W, 1 or 3] as the verbs write it."""
    from PIL import Image

    from pipeline.data.transforms import to_png

    return to_png(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image))


def downloads(images: dict[str, Images]) -> None:
    """A button for a picture, or for several in a zip file. images: by name of the file."""
    import streamlit as st

    files = {name: png(image) for name, image in images.items()}
    if len(files) == 1:
        ((name, content),) = files.items()
        st.download_button("Picture (PNG)", content, name, "image/png", on_click="ignore")
        return
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    st.download_button("Pictures (zip)", packed.getvalue(), "pictures.zip", "application/zip", on_click="ignore")


def attribute(name: str, options: Mapping[str, Any], key: str | None = None) -> Any:
    """The slider or menu of an attribute; its value, None where it is not told. key: of a widget that is not alone."""
    import streamlit as st

    if options["kind"] == "continuous":
        shown = [UNTOLD, *places(*options["range"])]
        value = st.select_slider(name, shown, format_func=lambda v: v if isinstance(v, str) else f"{v:g}", key=key)
        return None if value == UNTOLD else value
    if options["kind"] == "multi_label":
        help_text = "All that are chosen, at once."
        return st.multiselect(name, options["values"], placeholder=UNTOLD, help=help_text, key=key) or None
    return st.selectbox(name, options["values"], None, placeholder=UNTOLD, key=key)


def scale(name: str) -> float | None:
    """The field of a condition's own guidance scale; None where that of all counts."""
    import streamlit as st

    usual = "as above"
    value: float | None = st.number_input(f"Scale of {name}", 0.0, None, None, 0.5, placeholder=usual)
    return value


def places(low: float, high: float) -> list[float]:
    """Values of a slider from low to high, both among them: whole numbers where these are PLACES steps at most, else
    PLACES equal steps, rounded to as many digits as tell them apart."""
    if low == int(low) and high == int(high) and high - low <= PLACES and high - low > 1:
        return [float(value) for value in range(int(low), int(high) + 1)]
    digits = max(0, math.ceil(-math.log10((high - low) / PLACES)))
    inner = [round(low + (high - low) * i / PLACES, digits) for i in range(1, PLACES)]
    return [low, *(value for value in inner if low < value < high), high]
