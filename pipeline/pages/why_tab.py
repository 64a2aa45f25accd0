"""The tab of the sampling page that explains samples: what `ldm why` shows, and its command. How samples are explained
is `applications/why.py`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.pages import commands, widgets

if TYPE_CHECKING:
    from pipeline.applications.nearest import Training
    from pipeline.applications.why import Why
    from pipeline.pages.given_tabs import Tab

MOST = 8  # samples
MADE = "made/why"


def why_tab(tab: Tab) -> None:
    """Samples, where their conditions act, what looks at words, which training images are near. Nothing is made before
    the button is pressed."""
    import streamlit as st

    from pipeline.applications.why import shown, why

    model = tab.model
    with st.sidebar, st.form("why"):
        told = widgets.conditions(model, "why")
        n, steps = st.slider("Samples", 1, MOST, 2), widgets.steps(max(2, min(100, model.defaults["steps"])))
        how, seed = widgets.guidance(model), widgets.seed()
        near = st.toggle("Nearest training images", help="Of a model of a run here; the first time it takes long.")
        pressed = tab.pressed()
    if pressed:
        st.session_state.pop(MADE, None)
        request = model.request(n=n, seed=seed, steps=steps, **asked(told), **how)
        shows = [show for show in shown(model, request) if near or show != "nearest"]
        shows = shows or shown(model, request, ["guidance"])  # which says why there is nothing to show
        with st.spinner("At work ..."), widgets.TURN:
            training, made = _training(tab) if near else None, []
            for begin in range(0, n, request["batch_size"]):
                rows = range(begin, min(begin + request["batch_size"], n))
                made += why(model, request, rows, shows, training=training)
        words = [*words_of(tab, told), "-n", str(n), *(word for show in shows for word in ("--show", show))]
        words += tab.words(steps=steps, **how, seed=seed)
        st.session_state[MADE] = (tab.name, words, made)
    before = st.session_state.get(MADE)
    if before and before[0] == tab.name:
        _show(tab, *before[1:])
    else:
        st.info("Say on the left what samples shall show, and press the button.")


def asked(told: Mapping[str, Any]) -> dict[str, Any]:
    """What is told, by name, as arguments of `Generator.request`."""
    values = {name: value for name, value in told.items() if name not in ("class", "caption")}
    found: dict[str, Any] = {"attributes": values} if values else {}
    found |= {"classes": [told["class"]]} if "class" in told else {}
    return {**found, **({"prompts": [told["caption"]]} if "caption" in told else {})}


def words_of(tab: Tab, told: Mapping[str, Any]) -> list[str]:
    """What is told, as options of the command line."""
    own = tab.words(classes=told.get("class"), prompt=told.get("caption"))
    values = {name: value for name, value in told.items() if name not in ("class", "caption")}
    return [*own, *tab.sets(values)]


def _training(tab: Tab) -> Training:
    """The training images of the tab's model, found once."""
    import streamlit as st

    from pipeline.applications.nearest import training_of

    def found(key: str) -> Training:
        return training_of(tab.model, tab.root)

    kept = st.cache_resource(max_entries=1, show_spinner=False)(found)
    training: Training = kept(f"{tab.name} {tab.model.about.get('weights')}")
    return training


def _show(tab: Tab, words: Sequence[str], made: Sequence[Why]) -> None:
    """Of each sample what explains it, as files too, and the command."""
    import streamlit as st

    files = {}
    for one in made:
        for show, picture in one.pictures.items():
            st.image(picture, output_format="PNG")
            files[f"{one.facts['number']:06d}-{show}.png"] = picture
    widgets.downloads(files)
    st.markdown("**The same** on the command line")
    line = commands.verb_line("why", tab.name, [], words, tab.root, "why-out")
    st.code(line, language="bash", wrap_lines=True)
