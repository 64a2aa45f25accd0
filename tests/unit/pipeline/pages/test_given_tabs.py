"""The tabs over a given image: what they make is what the command that they show makes, and a mistake is one line."""

from __future__ import annotations

import base64
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from jobs.cli import group
from pipeline.applications import directions
from pipeline.data.latents import LatentSpace
from pipeline.errors import UserError
from pipeline.generate import folder
from pipeline.generate.generator import generator
from pipeline.pages import given_tabs, widgets
from pipeline.pages.commands import set_words, verb_line
from pipeline.pages.mask_canvas import MOST, START, mask_of
from tests.unit.pipeline.applications.test_edit import OPTIONS, SIDE, Exact, Pixels, faces

MASK = np.zeros((SIDE, SIDE), np.float32)
MASK[2:5, 3:7] = 1


def script(root: str) -> None:
    """What Streamlit executes; its text is taken out of here."""
    from pipeline.pages.sampling_page import page

    page(["exact", "--root", root])


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page of a model whose every answer is known; the mask that is painted is MASK."""
    testing = pytest.importorskip("streamlit.testing.v1", reason="Streamlit is not installed (extra `ui`)")
    space, device = LatentSpace(torch.zeros(3), torch.ones(3)), torch.device("cpu")
    model = generator(OPTIONS, Pixels(), Exact(), space, device, {"batch_size": 4}, {"name": "exact"})
    monkeypatch.setattr(folder, "load_pretrained", lambda *_, **__: model)
    monkeypatch.setattr(given_tabs, "painted", lambda *_: MASK)
    monkeypatch.setattr("pipeline.pages.sampling_page.show", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    for number, name in ((0, "a.png"), (2, "b.png"), (1, "small.jpg")):
        Image.fromarray(faces(number)[0]).save(name, quality=40)
    Image.fromarray((MASK * 255).astype(np.uint8)).save("mask.png")
    return testing.AppTest.from_function(script, args=(str(tmp_path / "runs"),)).run(timeout=60)


def at(page: Any, tab: str, *names: str) -> Any:
    page.segmented_control[0].set_value(tab)
    page.run(timeout=60)
    for box, name in zip((b for b in page.file_uploader if b.key != "mask"), names, strict=False):
        box.set_value((name, Path(name).read_bytes(), "image/png"))
    return page.run(timeout=60)


def menu(page: Any, kind: str, label: str, value: Any) -> None:
    next(box for box in getattr(page, kind) if box.label == label or box.key == label).set_value(value)


def made_twice(page: Any) -> list[str]:
    """Press the button, then type the command that is shown: the same pictures, bit for bit. Its words."""
    page.button[0].click().run(timeout=60)
    assert not page.exception and not page.error, page.error
    words = shlex.split(page.code[0].value)
    done = CliRunner().invoke(group, words[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    there = [p for p in sorted(Path(f"{words[1]}-out").iterdir()) if p.suffix == ".png" and p.name != "grid.png"]
    shown = page.session_state[f"made/{words[1]}"][2]
    assert len(there) == len(shown)
    for path, image in zip(there, shown, strict=True):
        assert (np.asarray(Image.open(path)) == image).all(), path
    return words


def test_edit(page: Any) -> None:
    at(page, "Edit", "a.png")
    menu(page, "selectbox", "to/class", "happy")
    menu(page, "selectbox", "was/class", "sad")
    menu(page, "slider", "Steps", 6)
    words = made_twice(page)
    assert words[2:8] == ["exact", "a.png", "--set", "class=happy", "--was", "class=sad"]
    changed = page.session_state["made/edit"][2][0].astype(int) - faces(0)[0]
    assert changed.mean() > 10
    page.toggle[0].set_value(True)
    page.run(timeout=60)
    page.button[0].click().run(timeout=60)
    kept = page.session_state["made/edit"][2][0]
    assert (kept == faces(0)[0])[MASK == 0].all() and "--mask mask.png" in page.code[0].value
    at(page, "Edit", "b.png")
    assert not page.code  # of the image before


def test_edit_along_a_direction(page: Any) -> None:
    step = np.zeros((3, SIDE, SIDE), np.float32)
    step[0] = 0.25
    directions.write(Path("red.safetensors"), step, {})
    at(page, "Edit", "a.png", "red.safetensors")
    menu(page, "slider", "How far along it", -2.0)
    menu(page, "slider", "Steps", 6)
    words = made_twice(page)
    assert words[4:8] == ["--along", "red.safetensors", "--by", "-2"]
    Path("other.safetensors").write_bytes(Path("b.png").read_bytes())
    at(page, "Edit", "a.png", "other.safetensors")
    page.button[0].click().run(timeout=60)
    assert [error.value.partition(";")[0] for error in page.error] == ["other.safetensors: is no direction"]


def test_inpaint_with_a_painted_mask(page: Any) -> None:
    at(page, "Inpaint", "a.png")
    menu(page, "slider", "Drawings", 2)
    menu(page, "slider", "Steps", 4)
    words = made_twice(page)
    assert words[4:8] == ["--mask", "mask.png", "-n", "2"]
    first, second = page.session_state["made/inpaint"][2]
    assert (first == faces(0)[0])[MASK == 0].all() and (first != second)[MASK == 1].any()


@pytest.mark.parametrize(("task", "file"), [("superres", "a.png"), ("jpeg", "large.jpg")])
def test_restore(page: Any, task: str, file: str) -> None:
    Image.fromarray(faces(1)[0]).resize((16, 16)).save("large.jpg", quality=40)
    at(page, "Restore", file)
    menu(page, "selectbox", "What is to be undone", task)
    page.run(timeout=60)
    menu(page, "slider", "Steps", 3)
    if task == "jpeg":  # a model of 8 pixels knows no blocks of 16
        page.button[0].click().run(timeout=60)
        assert [error.value.partition(";")[0] for error in page.error] == [
            "jpeg: blocks of 16 pixels must divide the 8 x 8 pixels of this model"
        ]
        return
    assert made_twice(page)[4:8] == ["--task", "superres", "--factor", "2"]
    assert page.session_state["made/restore"][2][0].shape == (16, 16, 3)


@pytest.mark.parametrize("way", [given_tabs.STRIP, given_tabs.COLLAGE, given_tabs.LOOK])
def test_compose(page: Any, way: str) -> None:
    at(page, "Compose", "a.png", "b.png")
    menu(page, "selectbox", "How", way)
    page.run(timeout=60)
    menu(page, "slider", "Steps", 4)
    words = made_twice(page)
    assert words[3:5] == ["a.png", "b.png"] and len(page.session_state["made/compose"][2]) == 1 + 4 * (
        way == given_tabs.STRIP
    )


def test_a_mistake_is_one_line_and_leaves_nothing(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at(page, "Edit", "a.png")
    page.button[0].click().run(timeout=60)
    assert [error.value for error in page.error] == [
        "edit: nothing is asked for; say what shall be true, or along what to go"
    ]
    assert not page.code and not page.exception
    Path("bad.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    Path("page.png").write_bytes(b"<script>alert(1)</script>")
    for name in ("bad.png", "page.png", "small.jpg"):
        content = Path(name).read_bytes()
        page.file_uploader[0].set_value((name.replace("jpg", "gif"), content, "image/png")).run(timeout=60)
        (error,) = page.error
        assert "is no image that can be used" in error.value and "\n" not in error.value, error.value
    at(page, "Inpaint", "a.png")
    monkeypatch.setattr(given_tabs, "painted", lambda *_: None)
    page.button[0].click().run(timeout=60)
    assert "paint what is to be new" in page.error[0].value
    monkeypatch.setattr(widgets, "UPLOAD_PIXELS", SIDE * SIDE - 1)
    page.run(timeout=60)
    assert page.error[0].value == f"a.png: 8 x 8 pixels, and this page takes {SIDE * SIDE - 1}; use the command"


def url(pixels: Any) -> str:
    return START + base64.b64encode(widgets.png(pixels)).decode()


def test_a_painted_mask_is_read_as_a_file_is() -> None:
    white = (MASK[..., None] * 255).astype(np.uint8)
    found = mask_of({"id": "x", "png": url(white)}, "x", MASK.shape)
    assert found is not None and (found == MASK).all()
    assert mask_of({"id": "of an image before", "png": url(white)}, "x", MASK.shape) is None
    assert mask_of(None, "x", MASK.shape) is None
    bad: list[Any] = ["text", {"id": "x"}, {"id": "x", "png": 3}, {"id": "x", "png": "http://127.0.0.1/a.png"}]
    bad += [
        {"id": "x", "png": START + "!!!"},
        {"id": "x", "png": START + "A" * MOST},
        {"id": "x", "png": START + "AAAA"},
    ]
    bad += [{"id": "x", "png": url(white[:4])}, {"id": "x", "png": url(white * 0)}]
    for answer in bad:
        with pytest.raises(UserError, match=r"^mask"):
            mask_of(answer, "x", MASK.shape)


def test_what_is_told_becomes_words_of_a_command() -> None:
    condition = {"attributes": {"worn": {"separator": ";"}, "age": {}}}
    model: Any = type("Model", (), {"options": {"condition": condition}})
    told = {"class": "not so glad", "worn": ["hat", "a, b"], "age": 3.5, "caption": "it's"}
    words = set_words("--was", model, told)
    assert words[1::2] == ["class=not so glad", "worn=hat;a, b", "age=3.5", "caption=it's"]
    line = verb_line("edit", "some model", ["a b.png"], words, Path("runs"), "out")
    assert shlex.split(line) == ["ldm", "edit", "some model", "a b.png", *words, "--out", "out"]
    assert "--root elsewhere" in verb_line("edit", "m", [], [], Path("elsewhere"), "out")
