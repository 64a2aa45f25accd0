"""The sampling page of a model of text: its texts, the lines that make them again, the files."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from pipeline.generate import folder
from pipeline.generate.text_samples import headings
from pipeline.pages import commands
from pipeline.pages.sampling_page import archive
from tests.unit.pipeline.applications.text_models import model


def script(root: str) -> None:
    """What Streamlit executes; its text is taken out of here."""
    from pipeline.pages.sampling_page import page

    page(["some model", "--root", root])


def test_texts_are_shown_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    testing = pytest.importorskip("streamlit.testing.v1", reason="Streamlit is not installed (extra `ui`)")
    asked, writer = [], model(told=True)

    def texts(self, request, first=0):
        asked.append(request)
        return ["*so* <b>", *[""] * (request["n"] - 1)]

    monkeypatch.setattr(type(writer), "texts", texts)
    monkeypatch.setattr(folder, "load_pretrained", lambda source, root: writer)
    page = testing.AppTest.from_function(script, args=(str(tmp_path),)).run(timeout=60)
    assert not page.exception and asked == [writer.request(n=16)]
    assert [text.value for text in page.text][:2] == ["*so* <b>", "(an empty text)"]
    assert [box.label for box in page.text_area] == ["What is said before"] and page.slider[0].label == "Texts"
    page.text_area[0].set_value("Hello *you*")
    page.button[0].click().run(timeout=60)
    assert asked[-1] == writer.request(n=16, prompts=["Hello *you*"])
    assert "Hello \\*you\\*" in [caption.value for caption in page.caption]
    assert "--prompt 'Hello *you*'" in page.code[0].value and "model.texts(model.request(" in page.code[1].value


def test_lines_and_files_of_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = model(told=True)
    request = writer.request(n=3, prompts=["one", "a AND b"], seed=2)
    assert headings(writer, request) == ["one", "a AND b", "one"]
    monkeypatch.setattr(folder, "load_pretrained", lambda source: writer)
    names: dict[str, list[str]] = {}
    exec(commands.python_lines("some model", writer, request, tmp_path), names)
    assert names["texts"] == writer.texts(request)
    with zipfile.ZipFile(io.BytesIO(archive(writer, names["texts"], request))) as packed:
        lines = packed.read("samples.jsonl").decode().splitlines()
        assert [json.loads(line)["text"] for line in lines] == names["texts"] and "samples.json" in packed.namelist()
