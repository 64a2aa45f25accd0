"""The tabs of the sampling page over a given image: Edit, Inpaint, Restore, Compose.

Each asks for what the verb of its name asks for, calls the same functions of `applications/` for one image, and shows
the command that makes the same. Nothing is made before the button is pressed; what was made stays until the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.pages import commands, widgets
from pipeline.pages.mask_canvas import painted
from pipeline.pages.widgets import Upload

if TYPE_CHECKING:
    from pipeline.data.pictures import Images
    from pipeline.data.transforms import Array
    from pipeline.generate.generator import Generator

STRIP, COLLAGE, LOOK = "A strip from A to B", "B where I paint", "A in the look of B"
MASK = "mask.png"
COLUMNS = 4  # of pictures
GIVE = "Give an image on the left."


@dataclass(frozen=True)
class Tab:
    """One tab, for one model: its verb, the model's name on the command line, where runs lie."""

    verb: str
    model: Generator
    name: str
    root: Path

    def pressed(self) -> bool:
        """The form's button."""
        import streamlit as st

        return bool(st.form_submit_button(self.verb.capitalize(), type="primary", width="stretch"))

    def words(self, **options: Any) -> list[str]:
        """Options of the command line; of those that are None, none."""
        given = {f"--{name}": value for name, value in options.items() if value is not None}
        return [word for name, value in given.items() for word in (name, str(value))]

    def sets(self, told: dict[str, Any], option: str = "--set") -> list[str]:
        """What is told, as options of the command line."""
        return commands.set_words(option, self.model, told)

    def show(
        self,
        pressed: bool,
        of: Sequence[Upload],
        words: Sequence[str],
        make: Callable[[], Sequence[Images]],
        mask: Array | None = None,
    ) -> None:
        """Make images if the button was `pressed`; show what was made last of these files, and its command.

        words: of the command line, behind the files. mask: what was painted, if it was: it can be had as a file.
        """
        import streamlit as st

        key, digests = f"made/{self.verb}", [self.name, *(file.digest for file in of)]
        if pressed:
            st.session_state.pop(key, None)
            with st.spinner("At work ..."), widgets.TURN:
                made = list(make())
            st.session_state[key] = (digests, list(words), made, mask)
        before = st.session_state.get(key)
        if not before or before[0] != digests:
            return
        _, said, made, mask = before
        columns = cycle(st.columns(min(len(made), COLUMNS)))
        for column, image in zip(columns, made, strict=False):
            column.image(widgets.enlarged(image), output_format="PNG")
        ends = [f"-{number}" for number in range(len(made))] if len(made) > 1 else [""]
        stem = Path(of[0].name).stem
        widgets.downloads({f"{stem}-{self.verb}{end}.png": image for end, image in zip(ends, made, strict=True)})
        if mask is not None:
            content = widgets.png((mask[..., None] * 255).astype("uint8"))
            st.download_button("The mask (PNG)", content, MASK, "image/png", on_click="ignore")
        st.markdown("**The same** on the command line")
        line = commands.verb_line(self.verb, self.name, [file.name for file in of], said, self.root, f"{self.verb}-out")
        st.code(line, language="bash", wrap_lines=True)


def edit_tab(tab: Tab) -> None:
    """An image as the model would have it if something else were true of it."""
    import streamlit as st

    from pipeline.applications import directions, edit

    model = tab.model
    with st.sidebar:
        file = widgets.upload("Image", "image")
        way = st.file_uploader("Direction", ["safetensors"], help="Of `ldm probe --between`: what to go along.")
        within = st.toggle("Only where I paint")
        with st.form("edit"):
            st.markdown("**What shall be true**")
            asked = widgets.conditions(model, "to")
            st.markdown("**What is true of it**")
            true = widgets.conditions(model, "was")
            by = st.slider("How far along it", -3.0, 3.0, 1.0, 0.25) if way else None
            strength = st.slider("Strength", 0.05, 1.0, 0.6, 0.05, help="How far from the image the walk begins.")
            method = st.selectbox("Method", edit.METHODS, help="From the image's own noise, or from fresh noise.")
            steps, how, seed = widgets.steps(50), widgets.guidance(model), widgets.seed()
            pressed = tab.pressed()
    if file is None:
        st.info(GIVE)
        return
    image = file.image(model.channels, model.shapes[0])
    left, right = st.columns([2, 3])
    with left:
        mask = _shown(image, "edit", within)
    if within and pressed and mask is None:
        raise UserError("mask: marks nothing, so nothing would change; paint what may")
    words = [*tab.sets(asked), *tab.sets(true, "--was")]
    words += tab.words(along=way.name, by=f"{by:g}") if way else []
    words += tab.words(strength=strength, method=method, mask=MASK if within else None, steps=steps, **how, seed=seed)
    more: dict[str, Any] = {"mask": mask, "seed": seed, "steps": steps, **how}

    def make() -> Sequence[Images]:
        along = by * directions.decoded(way.name, way.getvalue(), model) if way else None
        return list(edit.edit(model, image[None], asked, true or None, strength, method, along=along, **more))

    with right:
        tab.show(pressed, [file], words, make, mask)


def inpaint_tab(tab: Tab) -> None:
    """What a mask marks of an image, or what lies around it, drawn anew."""
    import streamlit as st

    from pipeline.applications import given_images, inpaint

    model = tab.model
    with st.sidebar:
        file = widgets.upload("Image", "image")
        own = widgets.upload("Mask, if it is a file: white is drawn", "mask")
        with st.form("inpaint"):
            pad = int(st.number_input("Pixels around it", 0, 512, 0, help="Added on all sides, and drawn."))
            count = st.slider("Drawings", 1, 8, 4)
            st.markdown("**What shall be true**")
            asked = widgets.conditions(model, "inpaint")
            steps = widgets.steps(12)
            temperature = st.slider("Temperature", 0.0, 1.0, inpaint.TEMPERATURE, help="Share of the noise: variety.")
            how, seed = widgets.guidance(model), widgets.seed()
            pressed = tab.pressed()
    if file is None:
        st.info(GIVE)
        return
    image = file.image(model.channels, None)
    left, right = st.columns([2, 3])
    with left:
        mask = _shown(image, "inpaint", own is None)
        if own:
            mask = given_images.as_mask(own.name, own.content, image.shape[:2], exact=True)
    if pressed and mask is None and not pad:
        raise UserError("mask: marks nothing, so nothing would be drawn; paint what is to be new")
    name = own.name if own else MASK if mask is not None else None
    words = [*tab.words(mask=name, pad=pad or None), "-n", str(count), *tab.sets(asked)]
    words += tab.words(steps=steps, temperature=temperature, **how, seed=seed)

    def make() -> Sequence[Images]:
        pixels, marked = inpaint.padded(image, mask, pad)
        inpaint.check(model, pixels, marked)
        return list(inpaint.inpaint(model, pixels, marked, count, asked, temperature, seed, steps=steps, **how))

    with right:
        tab.show(pressed, [file], words, make, None if own else mask)


def restore_tab(tab: Tab) -> None:
    """An image without noise, blur or JPEG's blocks, larger, or in colour."""
    import streamlit as st

    from pipeline.applications import jpeg_tables, restore

    model = tab.model
    with st.sidebar:
        file = widgets.upload("Image", "image")
        task = st.selectbox("What is to be undone", list(restore.TASKS))
        with st.form("restore"):
            names = [name for names in restore.TASKS[task] for name in names]
            given: dict[str, Any] = dict.fromkeys(restore.SAID) | {name: _parameter(name, task) for name in names}
            st.markdown("**What is true of it**")
            true = widgets.conditions(model, "restore")
            steps, how, seed = widgets.steps(restore.HOW["steps"]), widgets.guidance(model), widgets.seed()
            pressed = tab.pressed()
    if file is None:
        st.info(GIVE)
        return
    image = file.image(1 if task == "colorize" else model.channels, None)
    left, right = st.columns([2, 3])
    with left:
        _shown(image, "restore", False)
    words = [*tab.words(task=task, **given), *tab.sets(true), *tab.words(steps=steps, **how, seed=seed)]

    def make() -> Sequence[Images]:
        values = dict(given)
        if task == "jpeg" and values["quality"] is None:
            values["quality"] = jpeg_tables.quality_of(Path(file.name), file.content)
        large = (values["factor"] or 1) ** 2 * image.shape[0] * image.shape[1]
        if large > widgets.UPLOAD_PIXELS:
            raise UserError(f"image: {large:,} pixels would come out, and this page makes {widgets.UPLOAD_PIXELS:,}")
        restore.check(model, (1, *image.shape), task, values["factor"])
        turn = jpeg_tables.turn_of(Path(file.name), file.content) if task == "jpeg" else 1
        lies = jpeg_tables.turned(image, turn, upright=False)[None]
        made = restore.restore(model, lies, task, **values, to=true, seed=seed, steps=steps, **how)
        return [jpeg_tables.turned(made[0], turn, upright=True)]

    with right:
        tab.show(pressed, [file], words, make)


def _parameter(name: str, task: str) -> float | int | None:
    """The field of what `restore` is told of a measurement; None where it is not."""
    import streamlit as st

    if name == "factor":
        return int(st.selectbox("factor", (2, 4, 8), help="How many times larger."))
    if name == "blur":
        return float(st.slider("blur", 0.2, 8.0, 1.5, 0.1, help="Deviation of the Gaussian blur, in pixels."))
    if name == "quality":
        return st.number_input("quality", 1, 100, None, help="Of JPEG.", placeholder="as the file says")  # type: ignore[no-any-return]
    empty = "it is measured" if task == "denoise" else "there is none"
    help_text = f"Deviation in gray levels of 255; empty: {empty}."
    return st.number_input("noise", 0.001, 255.0, None, 1.0, help=help_text, placeholder=empty)  # type: ignore[no-any-return]


def compose_tab(tab: Tab) -> None:
    """Two images made one: a strip between them, a collage, the look of one on the other."""
    import streamlit as st

    from pipeline.applications import compose

    model, shape = tab.model, tab.model.shapes[0]
    with st.sidebar:
        first, second = widgets.upload("Image A", "image"), widgets.upload("Image B", "second")
        way = st.selectbox("How", (STRIP, COLLAGE, LOOK))
        with st.form("compose"):
            n = st.slider("Images of the strip", 3, 9, 5) if way == STRIP else None
            strength = None if n else st.slider("Strength", 0.05, 1.0, compose.STRENGTH, 0.05)
            st.markdown("**What is true of both**")
            true = widgets.conditions(model, "compose")
            steps = widgets.steps(50)
            how, seed = ({}, None) if n else (widgets.guidance(model), widgets.seed())
            pressed = tab.pressed()
    if first is None or second is None:
        st.info("Give two images on the left.")
        return
    a, b = (file.image(model.channels, shape) for file in (first, second))
    left, right = st.columns([2, 3])
    with left:
        mask = _shown(a, "compose", way == COLLAGE)
        _shown(b, "compose", False)
    if way == COLLAGE and pressed and (mask is None or mask.all()):
        raise UserError("mask: paint where B shall be, and leave some of A")
    words = {STRIP: tab.words(between=n), COLLAGE: tab.words(mask=MASK), LOOK: ["--look"]}[way] + tab.sets(true)
    words += tab.words(strength=strength, steps=steps, **how, seed=seed)

    def make() -> Sequence[Images]:
        if n:
            return list(compose.between(model, a, b, n, true, steps=steps))
        far: dict[str, Any] = {"strength": strength, "seed": seed, "steps": steps, **how}
        if mask is None:
            return [compose.look(model, a, b, true, **far)]
        return [compose.collage(model, a, b, mask, true, **far)]

    with right:
        tab.show(pressed, [first, second], words, make, mask)


def _shown(image: Images, key: str, to_paint: bool) -> Array | None:
    """Show an image that was given, to paint a mask over it or not; the mask."""
    import streamlit as st

    if to_paint:
        return painted(image, key)
    st.image(widgets.enlarged(image), output_format="PNG")
    return None


TABS: dict[str, Callable[[Tab], None]] = {
    "Edit": edit_tab,
    "Inpaint": inpaint_tab,
    "Restore": restore_tab,
    "Compose": compose_tab,
}
