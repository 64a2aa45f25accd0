"""The tab that explains samples: its pictures are those of the command that it shows, and a mistake is one line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from jobs.cli import group
from pipeline.generate import folder
from tests.unit.pipeline.applications.test_why import MODEL
from tests.unit.pipeline.pages.test_given_tabs import menu, script


def test_samples_are_explained_as_the_command_explains_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    testing = pytest.importorskip("streamlit.testing.v1", reason="Streamlit is not installed (extra `ui`)")
    monkeypatch.setattr(folder, "load_pretrained", lambda *_, **__: MODEL)
    monkeypatch.setattr("pipeline.pages.sampling_page.show", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    page: Any = testing.AppTest.from_function(script, args=(str(tmp_path / "runs"),)).run(timeout=60)
    page.segmented_control[0].set_value("Why")
    page.run(timeout=60)
    menu(page, "selectbox", "why/class", "far up")
    menu(page, "selectbox", "why/mood", "a")
    page.button[0].click().run(timeout=60)
    assert not page.exception and not page.error, page.error
    words = shlex.split(page.code[0].value)
    assert words[:8] == ["ldm", "why", "exact", "--classes", "far up", "--set", "mood=a", "-n"]
    done = CliRunner().invoke(group, words[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    _, _, made = page.session_state["made/why"]
    for number, one in enumerate(made):
        assert list(one.pictures) == ["guidance"]
        written = np.asarray(Image.open(f"why-out/{number:06d}-guidance.png"))
        assert (written == one.pictures["guidance"]).all()
    assert len(made) == 2
    page.toggle[0].set_value(True)
    page.button[0].click().run(timeout=60)
    (error,) = page.error
    assert error.value.startswith("nearest: this model does not say what it was trained on") and not page.code
