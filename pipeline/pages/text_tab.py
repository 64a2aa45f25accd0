"""The tab of the sampling page that writes texts: each under its class or the text before it, downloads, the command
and the Python lines that make the same texts again. What is asked for is `sampling_page.py`'s sliders."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.pages import commands, widgets

if TYPE_CHECKING:
    from pipeline.generate.generator import Generator

MARKS = {ord(mark): f"\\{mark}" for mark in "\\*_`[]<>$#:~|"}  # which Markdown would take for its own


def show(model: Generator, name: str, root: Path, request: dict[str, Any], archive: Callable[..., bytes]) -> None:
    """Texts, and how they are made again; archive(model, texts, request): a zip file of what `ldm sample` writes."""
    import streamlit as st

    from pipeline.generate.text_samples import headings

    def made(key: str, request: dict[str, Any]) -> tuple[list[str], float]:
        with widgets.TURN:
            begun = time.monotonic()
            return model.texts(request), time.monotonic() - begun

    sample = st.cache_data(max_entries=16, show_spinner="Writing ...")(made)
    texts, seconds = sample(f"{name} {model.about.get('weights')}", request)
    left, right = st.columns([3, 2])
    with left:
        for heading, text in zip(headings(model, request), texts, strict=True):
            if heading:
                st.caption(heading.translate(MARKS))
            st.text(text or "(an empty text)")  # as it is: what a model writes is no Markdown
        st.caption(f"{len(texts)} texts, {seconds:.1f} s on {model.device}")
    with right:
        st.markdown("**The same texts** on the command line")
        st.code(commands.command_line(name, model, request, root), language="bash", wrap_lines=True)
        st.markdown("and in Python")
        st.code(commands.python_lines(name, model, request, root), language="python", wrap_lines=True)
        files = archive(model, texts, request)
        st.download_button("All files (zip)", files, "samples.zip", "application/zip", on_click="ignore")
