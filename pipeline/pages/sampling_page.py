"""The sampling page of `ldm ui`: images by prompts, menus and sliders, and the command and the Python lines that make
them again.

A Streamlit script: `serve.py` starts `streamlit run` on it, and Streamlit executes it from top to bottom at each
change. Sampling itself, and what a model may be told, is `generate/`'s; nothing here decides on an image.
"""

from __future__ import annotations

import argparse
import io
import math
import shlex
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.data.pictures import Images
    from pipeline.generate.generator import Generator

SLIDERS = ("n", "seed", "classes", "sampler", "steps", "guidance")
COUNT, STEPS, GUIDANCE = 16, 100, 10.0  # images at first; the sliders' ends
SHOWN = 640  # pixels: the grid is enlarged, by a whole number, to at most this width
PROMPTS = "Several: one a line, in turn row by row. `a red hat AND wide eyes`: both, each by itself."
UNTOLD = "not told"
PLACES = 100  # of a slider over an attribute's range


def models_in(root: Path) -> dict[str, str]:
    """The models under a root, newest first: {what `load_pretrained` takes: what a person reads}.

    Registered models, and diffusion artifacts that no registered model was made of.
    """
    from pipeline.artifacts import Artifact

    found: dict[str, str] = {}
    made_of: set[str] = set()
    for stage in ("register", "diffusion"):
        manifests = sorted((root / "artifacts" / stage).glob("*/manifest.json"), key=lambda p: -p.stat().st_mtime)
        for folder in (path.parent for path in manifests):  # as it was given: a relative root makes short commands
            artifact = Artifact.load(folder)
            if stage == "register":
                made_of.add(artifact.inputs["diffusion"]["fingerprint"])
                found[str(folder / "model")] = f"{artifact.summary['name']} ({artifact.fingerprint[:8]})"
            elif artifact.fingerprint not in made_of:
                found[str(folder)] = f"not registered: diffusion {artifact.fingerprint[:8]}"
    return found


def told(model: Generator, request: Mapping[str, Any]) -> dict[str, Any]:
    """Of a request (`Generator.request`) what a command must say: the sliders, and what is not the model's default."""
    known = {key: value for key, value in request.items() if key in SLIDERS or value != model.defaults.get(key)}
    usual = [] if "prompts" in known or "attributes" in known else model.request()["classes"]
    if known["classes"] == usual:
        del known["classes"]
    else:
        known["classes"] = [model.classes[label] for label in known["classes"]]
    if "attributes" in known:
        known["attributes"] = {name: only for name, (only,) in known["attributes"].items()}
    return known


def command_line(name: str, model: Generator, request: Mapping[str, Any], root: Path) -> str:
    """The `ldm sample` command of a request of the model `name`: the same images, bit for bit."""
    from pipeline.generate.prompts import said

    words = ["ldm", "sample", name, "--out", "samples"]
    for key, value in told(model, request).items():
        if key == "n":
            words += ["-n", str(value)]
        elif key == "classes":
            numbers = map(str, request["classes"])
            words += ["--classes", ",".join(numbers if any("," in one for one in value) else value)]
        elif key == "prompts":
            words += [word for prompt in value for word in ("--prompt", said(prompt))]
        elif key == "attributes":
            known = model.options["condition"]["attributes"]
            words += [word for one in value for word in ("--set", f"{one}={_text(known[one], value[one])}")]
        elif key == "scales":
            words += [word for one, scale in value.items() for word in ("--scale", f"{one}={scale}")]
        else:
            words += [f"--{key.replace('_', '-')}", *map(str, value if isinstance(value, list | tuple) else [value])]
    if name.startswith("models:"):
        words += ["--root", str(root)]
    return shlex.join(words)


def _text(options: Mapping[str, Any], value: Any) -> str:
    """An attribute's value as `--set` takes it."""
    return str(options.get("separator", ",").join(value)) if isinstance(value, list) else str(value)


def python_lines(name: str, model: Generator, request: Mapping[str, Any], root: Path) -> str:
    """The Python lines of a request of the model `name`."""
    given = ", ".join(f"{key}={value!r}" for key, value in told(model, request).items())
    place = f", root={str(root)!r}" if name.startswith("models:") else ""
    return (
        "from pipeline.generate import load_pretrained\n\n"
        f"model = load_pretrained({name!r}{place})\n"
        f"images = model.sample({given})  # uint8 [n, H, W, C]"
    )


def archive(model: Generator, images: Images, request: Mapping[str, Any]) -> bytes:
    """A zip file of what `ldm sample` writes: images, grid, samples.json."""
    from pipeline.generate.samples import sample_info, write_samples

    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(packed, "w") as file:
        folder = write_samples(Path(place) / "samples", images, sample_info(model, request), values=model.values)
        for path in sorted(folder.iterdir()):
            file.write(path, path.name)
    return packed.getvalue()


def png(image: Images) -> bytes:
    """A picture [H, W, 3] as `ldm sample` writes it."""
    from PIL import Image

    from pipeline.data.transforms import to_png

    return to_png(Image.fromarray(image))


def controls(model: Generator) -> dict[str, Any]:
    """The sliders: the arguments of `Generator.request`. Nothing is sampled before the button is pressed."""
    import streamlit as st

    from models.diffusion import grids, samplers
    from pipeline.generate.told import names

    chosen: dict[str, Any] = {}
    first, known = model.request(n=COUNT), names(model.options)
    with st.sidebar.form("request"):
        if model.options["condition"].get("caption"):
            text = st.text_area(
                "Prompt", height=68, placeholder=UNTOLD, help="Several: one a line, in turn row by row."
            )
            chosen["prompts"] = [line.strip() for line in text.splitlines() if line.strip()] or None
            help_text = "Guidance leads away from it; it has no effect at a scale of 1."
            chosen["negative"] = st.text_input("Negative prompt", placeholder="none", help=help_text).strip() or None
        if model.classes:
            help_text = "In turn, row by row. None chosen: all" + (
                "." if known == ["class"] else ", unless more is told."
            )
            chosen["classes"] = st.multiselect("Classes", model.classes, help=help_text) or None
        values = {name: attribute(name, own) for name, own in model.options["condition"].get("attributes", {}).items()}
        chosen["attributes"] = {name: value for name, value in values.items() if value is not None}
        chosen["n"] = st.slider("Images", 1, 64, first["n"])
        chosen["seed"] = int(st.number_input("Seed", 0, None, 0, help="The same seed, the same images."))
        chosen["steps"] = st.slider("Steps", 1, max(STEPS, first["steps"]), first["steps"])
        student = "student" in model.options
        solvers = [name for name in samplers.NAMES if (name in samplers.JUMPS) == student]
        for key, options in {"sampler": solvers, "grid": ["auto", *grids.GRIDS]}.items():
            chosen[key] = st.selectbox(key.capitalize(), options, options.index(first[key]))
        # a student has its teacher's guidance in it
        withheld = bool(known) and not student and model.options["condition"].get("drop", 0) > 0
        if first["guidance_kind"] == "autoguidance" or withheld:
            end = max(GUIDANCE, first["guidance"])
            label, text = "Guidance scale", "1: as trained. Above: closer to what is told, less variety."
            chosen["guidance"] = round(st.slider(label, 0.0, end, float(first["guidance"]), 0.1, help=text), 2)
        if first["guidance_kind"] == "classifier_free" and withheld and len(known) > 1:
            with st.expander("Scales of single conditions"):
                scales = {name: scale(name) for name in known}
            chosen["scales"] = {name: value for name, value in scales.items() if value is not None}
        st.form_submit_button("Make images", type="primary", width="stretch")
    return chosen


def attribute(name: str, options: Mapping[str, Any]) -> Any:
    """The slider or menu of an attribute; its value, None where it is not told."""
    import streamlit as st

    if options["kind"] == "continuous":
        shown = [UNTOLD, *places(*options["range"])]
        value = st.select_slider(name, shown, format_func=lambda v: v if isinstance(v, str) else f"{v:g}")
        return None if value == UNTOLD else value
    if options["kind"] == "multi_label":
        return st.multiselect(name, options["values"], placeholder=UNTOLD, help="All that are chosen, at once.") or None
    return st.selectbox(name, options["values"], None, placeholder=UNTOLD)


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


def show(model: Generator, name: str, root: Path) -> None:
    """The page of a model: sliders, grid, downloads, command, Python lines."""
    import numpy as np
    import streamlit as st

    from pipeline.data.pictures import grid

    request = model.request(**controls(model))

    def made(key: str, request: dict[str, Any]) -> tuple[Images, float]:
        begun = time.monotonic()
        return model.sample(**request), time.monotonic() - begun

    sample = st.cache_data(max_entries=16, show_spinner="Sampling ...")(made)
    images, seconds = sample(f"{name} {model.about.get('weights')}", request)
    sheet = grid(model.shown(images))
    times = max(1, SHOWN // sheet.shape[1])
    left, right = st.columns([3, 2])
    with left:
        st.image(np.repeat(np.repeat(sheet, times, 0), times, 1), output_format="PNG")
        height, width, channels = images.shape[1:]
        st.caption(f"{len(images)} images of {width} x {height} x {channels}, {seconds:.1f} s on {model.device}")
    with right:
        st.markdown("**The same images** on the command line")
        st.code(command_line(name, model, request, root), language="bash", wrap_lines=True)
        st.markdown("and in Python")
        st.code(python_lines(name, model, request, root), language="python", wrap_lines=True)
        st.download_button("Grid (PNG)", png(sheet), "grid.png", "image/png", on_click="ignore")
        files = archive(model, images, request)
        st.download_button("All files (zip)", files, "samples.zip", "application/zip", on_click="ignore")


def page(arguments: Sequence[str]) -> None:
    """The whole page. A mistake is shown in one line."""
    import streamlit as st

    from pipeline.errors import UserError
    from pipeline.generate.folder import load_pretrained

    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?")
    parser.add_argument("--root", type=Path, default=Path("runs"))
    parser.add_argument("--mlflow", default="", help="the address of the runs' page")
    given = parser.parse_args(arguments)

    st.set_page_config(page_title="Samples", layout="wide")
    st.title("Samples", anchor=False)
    if given.mlflow:
        st.sidebar.markdown(f"[Runs and models in MLflow]({given.mlflow})")
    known = models_in(given.root)
    if given.model:
        known = {given.model: given.model, **known}
    if not known:
        st.error(f"No model under {given.root}: type `ldm run` first, or give one: `ldm ui MODEL`.")
        return
    name = st.sidebar.selectbox("Model", list(known), format_func=known.__getitem__)
    st.caption(f"`{name}`")
    load = st.cache_resource(max_entries=2, show_spinner="Loading the model ...")(load_pretrained)
    try:
        show(load(name, root=given.root), name, given.root)
    except UserError as error:
        st.error(str(error))


if __name__ == "__main__":
    page(sys.argv[1:])
