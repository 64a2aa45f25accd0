"""The sampling page of `ldm ui`: images by prompts, menus and sliders, and the command and the Python lines that make
them again. Its other tabs, over a given image, are in `given_tabs.py`; the one that explains samples is `why_tab.py`.

A Streamlit script: `serve.py` starts `streamlit run` on it, and Streamlit executes it from top to bottom at each
change. Sampling itself, and what a model may be told, is `generate/`'s; nothing here decides on an image.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.pages import commands, text_tab, widgets

if TYPE_CHECKING:
    from pipeline.data.pictures import Images
    from pipeline.generate.generator import Generator

SAMPLE = "Sample"
COUNT, STEPS, GUIDANCE = 16, 100, 10.0  # images at first; the sliders' ends
PLAYERS, PLAYERS_A_ROW = 16, 4  # of sounds
PROMPTS = "Several: one a line, in turn row by row. `a red hat AND wide eyes`: both, each by itself."


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


def archive(model: Generator, made: Images | list[str], request: Mapping[str, Any]) -> bytes:
    """A zip file of what `ldm sample` writes: images, grid, samples.json; or texts."""
    from pipeline.generate.clip_samples import write_clips
    from pipeline.generate.samples import Earlier, earlier, sample_info, write_samples
    from pipeline.generate.sound_samples import write_sounds
    from pipeline.generate.text_samples import write_texts

    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(packed, "w") as file:
        folder, info = Path(place) / "samples", sample_info(model, request)
        if isinstance(made, list):
            write_texts(folder, made, info, earlier(folder, False))
        elif model.clip is not None:
            write_clips(folder, made, info, Earlier(), model.clip["rate"])
        elif model.sound is not None:
            write_sounds(folder, made, info, Earlier(), model)
        else:
            write_samples(folder, made, info, values=model.values)
        for path in sorted(folder.iterdir()):
            file.write(path, path.name)
    return packed.getvalue()


def controls(model: Generator) -> dict[str, Any]:
    """The sliders: the arguments of `Generator.request`. Nothing is sampled before the button is pressed."""
    import streamlit as st

    from models.diffusion import grids, samplers
    from pipeline.generate.told import names

    chosen: dict[str, Any] = {}
    first, known = model.request(n=COUNT), names(model.options)
    with st.sidebar.form("request"):
        if model.options["condition"].get("caption"):
            label = "Prompt" if model.tokenizer is None else "What is said before"
            help_text = PROMPTS if model.tokenizer is None else "Several: one a line, in turn."
            text = st.text_area(label, height=68, placeholder=widgets.UNTOLD, help=help_text)
            chosen["prompts"] = [line.strip() for line in text.splitlines() if line.strip()] or None
            help_text = "Guidance leads away from it; it has no effect at a scale of 1."
            chosen["negative"] = st.text_input("Negative prompt", placeholder="none", help=help_text).strip() or None
        if model.classes:
            help_text = "In turn, row by row. None chosen: all" + (
                "." if known == ["class"] else ", unless more is told."
            )
            chosen["classes"] = st.multiselect("Classes", model.classes, help=help_text) or None
        own = model.options["condition"].get("attributes", {})
        values = {name: widgets.attribute(name, options) for name, options in own.items()}
        chosen["attributes"] = {name: value for name, value in values.items() if value is not None}
        what = "Images" if model.tokenizer is None else "Texts"
        chosen["n"] = st.slider(what, 1, 64, first["n"])
        chosen["seed"] = int(st.number_input("Seed", 0, None, 0, help="The same seed, the same images."))
        student = "student" in model.options
        if not student:  # whose steps are its own
            chosen["steps"] = st.slider("Steps", 1, max(STEPS, first["steps"]), first["steps"])
        solvers = [name for name in samplers.NAMES if (name in samplers.JUMPS) == student]
        places = ["auto", "few"] if student else ["auto", *grids.GRIDS]
        for key, options in {"sampler": solvers, "grid": places}.items():
            chosen[key] = st.selectbox(key.capitalize(), options, options.index(first[key]))
        # a student has its teacher's guidance in it
        withheld = bool(known) and not student and model.options["condition"].get("drop", 0) > 0
        if first["guidance_kind"] == "autoguidance" or withheld:
            end = max(GUIDANCE, first["guidance"])
            label, text = "Guidance scale", "1: as trained. Above: closer to what is told, less variety."
            chosen["guidance"] = round(st.slider(label, 0.0, end, float(first["guidance"]), 0.1, help=text), 2)
        if first["guidance_kind"] == "classifier_free" and withheld and len(known) > 1:
            with st.expander("Scales of single conditions"):
                scales = {name: widgets.scale(name) for name in known}
            chosen["scales"] = {name: value for name, value in scales.items() if value is not None}
        st.form_submit_button(f"Make {what.lower()}", type="primary", width="stretch")
    return chosen


def show(model: Generator, name: str, root: Path) -> None:
    """The tab that samples: sliders, grid, downloads, command, Python lines."""
    import streamlit as st

    from pipeline.data.pictures import grid

    request = model.request(**controls(model))
    if model.tokenizer is not None:
        text_tab.show(model, name, root, request, archive)
        return

    def made(key: str, request: dict[str, Any]) -> tuple[Images, float]:
        with widgets.TURN:
            begun = time.monotonic()
            return model.sample(**request), time.monotonic() - begun

    sample = st.cache_data(max_entries=16, show_spinner="Sampling ...")(made)
    images, seconds = sample(f"{name} {model.about.get('weights')}", request)
    sheet = grid(model.shown(images), columns=1 if model.clip else None)
    left, right = st.columns([3, 2])
    with left:
        height, width, channels = images.shape[-3:]
        what = "images" if model.sound is None else "sounds, their spectrograms"
        if model.clip is not None:
            st.html(widgets.moving(images, model.clip["rate"]))
            what = f"clips of {images.shape[1]} frames, {model.clip['rate']:g} a second,"
        else:
            st.image(widgets.enlarged(sheet, widgets.SHOWN), output_format="PNG")
        st.caption(f"{len(images)} {what} of {width} x {height} x {channels}, {seconds:.1f} s on {model.device}")
        if model.sound is not None:
            play(model, images, request)
    with right:
        st.markdown("**The same images** on the command line")
        st.code(commands.command_line(name, model, request, root), language="bash", wrap_lines=True)
        st.markdown("and in Python")
        st.code(commands.python_lines(name, model, request, root), language="python", wrap_lines=True)
        st.download_button("Grid (PNG)", widgets.png(sheet), "grid.png", "image/png", on_click="ignore")
        files = archive(model, images, request)
        st.download_button("All files (zip)", files, "samples.zip", "application/zip", on_click="ignore")


def play(model: Generator, images: Images, request: Mapping[str, Any]) -> None:
    """A player for each of the first sounds, in rows."""
    import streamlit as st

    from pipeline.generate.sound_samples import wav_of

    columns = st.columns(PLAYERS_A_ROW)
    labels = request["classes"]
    for number, wave in enumerate(model.waves(images[:PLAYERS])):
        with columns[number % PLAYERS_A_ROW]:
            named = f", {model.classes[labels[number % len(labels)]]}" if labels else ""
            st.caption(f"{number}{named}")
            st.audio(wav_of(wave, model), format="audio/wav")


def page(arguments: Sequence[str]) -> None:
    """The whole page. A mistake is shown in one line."""
    import streamlit as st

    from pipeline.errors import UserError
    from pipeline.generate.folder import load_pretrained
    from pipeline.pages.given_tabs import TABS, Tab
    from pipeline.pages.why_tab import why_tab

    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?")
    parser.add_argument("--root", type=Path, default=Path("runs"))
    parser.add_argument("--mlflow", default="", help="the address of the runs' page")
    given = parser.parse_args(arguments)

    st.set_page_config(page_title="Images", layout="wide")
    tabs = {**TABS, "Why": why_tab}
    chosen = st.segmented_control("What to do", [SAMPLE, *tabs], default=SAMPLE, label_visibility="collapsed")
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
        model = load(name, root=given.root)
        if chosen in tabs:
            tabs[chosen](Tab(str(chosen).lower(), model, name, given.root))
        else:
            show(model, name, given.root)
    except UserError as error:
        st.error(str(error))


if __name__ == "__main__":
    page(sys.argv[1:])
