"""What the sampling page says of a request: a command and Python lines that make the same request again."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.sample import command
from pipeline.generate import folder, samples
from pipeline.generate.generator import Generator
from pipeline.pages.commands import command_line, python_lines
from pipeline.pages.sampling_page import models_in
from pipeline.pages.widgets import places

NAMES = ["cat", "3", "a, b"]
CONDITION: dict[str, Any] = {
    "kind": "class",
    "drop": 0.1,
    "attributes": {
        "mood": {"kind": "categorical", "values": ["glad", "not so glad"]},
        "age": {"kind": "continuous", "range": [-1.0, 9.0]},
        "worn": {"kind": "multi_label", "values": ["hat", "a, b"], "separator": ";"},
    },
    "caption": {"tokens": 32, "encoder": {"kind": "trained"}},
}
ATTRIBUTES = tuple(CONDITION["attributes"])
MORE: dict[str, Any] = {
    "prompts": ["it's a hat", "--two", "a AND b"],
    "negative": 'a "dark" one',
    "attributes": {"mood": "not so glad", "age": -0.125, "worn": ["hat", "a, b"]},
    "scales": {"caption": 4.123456789, "age": 0.0},
}
TOLD = [(None, {}), (["cat"], {}), (["3", "cat", "cat"], {}), (["a, b", "3"], {}), (None, MORE), (NAMES, MORE)]


def model() -> Generator:
    """What checks requests: no networks."""
    return Generator({"classes": NAMES, "condition": CONDITION}, None, None, None, None)  # type: ignore[arg-type]


def asked_of(classes: list[str] | None, more: dict[str, Any]) -> dict[str, Any]:
    return model().request(classes, 7, 5, 12, "euler", 2.5, 4, grid="karras", guidance_interval=(0.2, 5.0), **more)


@pytest.mark.parametrize(("classes", "more"), TOLD)
def test_the_command_makes_the_same_request(
    classes: list[str] | None, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked_of(classes, more)
    words = shlex.split(command_line("some model", model(), request, tmp_path))
    assert words[:2] == ["ldm", "sample"]
    asked: list[Any] = []

    def load(source: str, root: Path, weights: None) -> Any:
        def ask(*values: Any, **how: Any) -> dict[str, Any]:
            asked.append(model().request(*values, **how))
            return asked[-1]

        return SimpleNamespace(
            request=ask,
            images=lambda *_: [],
            classes=NAMES,
            shapes=[(8, 8)],
            values=None,
            tokenizer=None,
            clip=None,
            sound=None,
        )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder, "load_pretrained", load)
    monkeypatch.setattr(samples, "sample_info", lambda *_: {})
    monkeypatch.setattr(samples, "write_samples", lambda *_: None)
    command.main(words[2:], standalone_mode=False)
    assert asked == [request]


@pytest.mark.parametrize(("classes", "more"), TOLD)
def test_the_python_lines_make_the_same_request(
    classes: list[str] | None, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked_of(classes, more)
    loaded: list[Any] = []

    def load(*source: Any, **options: Any) -> Any:
        loaded.append((*source, options))
        return SimpleNamespace(sample=lambda **values: model().request(**values))

    monkeypatch.setattr(folder, "load_pretrained", load)
    names: dict[str, Any] = {}
    exec(python_lines("models:/cats@best", model(), request, tmp_path), names)
    assert names["images"] == request and loaded == [("models:/cats@best", {"root": str(tmp_path)})]


def test_a_registered_model_is_told_where_its_data_base_is(tmp_path: Path) -> None:
    request = model().request()
    assert f"--root {tmp_path}" in command_line("models:/cats@best", model(), request, tmp_path)
    assert "--root" not in command_line("folder", model(), request, tmp_path)


@pytest.mark.parametrize(("low", "high"), [(0.0, 100.0), (0.0, 1.0), (-3.0, 3e6), (1e-9, 3e-9), (0.1, 0.3)])
def test_a_slider_goes_through_an_attributes_range(low: float, high: float) -> None:
    found = places(low, high)
    assert found[0] == low and found[-1] == high and found == sorted(set(found)) and 90 <= len(found) <= 101


def test_a_root_without_models_offers_none(tmp_path: Path) -> None:
    assert models_in(tmp_path) == {}


def script(root: str) -> None:
    """What Streamlit executes; its text is taken out of here."""
    from pipeline.pages.sampling_page import page

    page(["some model", "--root", root])


def test_the_page_tells_the_model_its_own_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    testing = pytest.importorskip("streamlit.testing.v1", reason="Streamlit is not installed (extra `ui`)")
    sampled: list[dict[str, Any]] = []

    class Ready(Generator):
        def sample(self, **request: Any) -> Any:  # type: ignore[override]
            sampled.append(request)
            return np.zeros((request["n"], 4, 4, 3), np.uint8)

    def load(source: str, root: Path) -> Generator:
        return Ready({"classes": NAMES, "condition": CONDITION}, None, None, None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(folder, "load_pretrained", load)
    monkeypatch.setattr("pipeline.pages.sampling_page.archive", lambda *_: b"")
    page = testing.AppTest.from_function(script, args=(str(tmp_path),)).run(timeout=60)
    assert not page.exception and sampled[-1] == model().request(n=16)  # told its classes in turn, as without a page
    assert [box.label for box in page.text_area] == ["Prompt"] and "AND" in page.text_area[0].help
    assert page.select_slider[0].label == "age" and page.select_slider[0].value == "not told"
    assert {box.label: box.options for box in page.selectbox}["mood"] == ["glad", "not so glad"]
    assert [box.label for box in page.number_input][1:] == [f"Scale of {n}" for n in ("class", *ATTRIBUTES, "caption")]

    page.text_area[0].set_value(" a hat \n\ntwo hats")
    page.text_input[0].set_value("dark")
    page.select_slider[0].set_value(3.0)
    next(box for box in page.selectbox if box.label == "mood").set_value("not so glad")
    next(box for box in page.multiselect if box.label == "worn").set_value(["a, b"])
    next(box for box in page.number_input if box.label == "Scale of caption").set_value(4.0)
    page.button[0].click().run(timeout=60)
    values: dict[str, Any] = {"mood": "not so glad", "age": 3.0, "worn": ["a, b"]}
    told = {"attributes": values, "negative": "dark", "scales": {"caption": 4.0}}
    assert sampled[-1] == model().request(n=16, prompts=["a hat", "two hats"], **told)
    assert "--set mood='not so glad'" in page.code[0].value or "--set 'mood=not so glad'" in page.code[0].value

    page.text_area[0].set_value("x" * 100)
    page.button[0].click().run(timeout=60)
    assert [error.value for error in page.error] == [
        "prompt: a prompt of 100 bytes (xxxxxxxxxxxxxxxxxxxx...), and the model reads 31; shorten it"
    ]
    assert not page.code  # nothing of the request before


def test_clips_move_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    testing = pytest.importorskip("streamlit.testing.v1", reason="Streamlit is not installed (extra `ui`)")
    made = np.random.default_rng(0).integers(0, 255, (2, 3, 8, 8, 3), np.uint8)

    class Ready(Generator):
        def sample(self, **request: Any) -> Any:  # type: ignore[override]
            return made

    options = {"classes": [], "condition": {"kind": "none"}, "clip": {"frames": 3, "rate": 8.0}}
    monkeypatch.setattr(
        folder,
        "load_pretrained",
        lambda *_, **__: Ready(options, None, None, None, None),  # type: ignore[arg-type]
    )
    page = testing.AppTest.from_function(script, args=(str(tmp_path),)).run(timeout=60)
    assert not page.exception and not page.error
    (html,) = [found.proto.body for found in page.get("html")]
    assert html.startswith("<img") and "data:image/webp;base64," in html
    assert any("clips of 3 frames, 8 a second, of 8 x 8 x 3" in found.value for found in page.caption)
    assert "uint8 [n, T, H, W, C]" in page.code[1].value
