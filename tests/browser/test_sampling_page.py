"""The sampling page in a browser: sliders, a mask drawn with the mouse, downloads, and the command that makes the same
images."""

from __future__ import annotations

import io
import shlex
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


def test_a_request_its_command_and_its_download(
    sampling: str, page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grid that is downloaded is, byte for byte, the one that the shown command writes; nothing leaves the page."""
    from jobs.sample import command

    page.goto(sampling)
    line = page.get_by_text("ldm sample").first
    line.wait_for()
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_label("Seed", exact=True).press("Tab")
    page.get_by_role("slider", name="Images").press("ArrowLeft")
    page.get_by_role("slider", name="Guidance").press("ArrowRight")
    page.get_by_test_id("stMultiSelect").locator("input").click()
    page.get_by_role("option", name="light").click()
    page.keyboard.press("Escape")  # closes the list: the rest of the page is hidden from readers while it is open
    page.get_by_role("button", name="Make images").click()
    page.get_by_text("--seed 7").first.wait_for()
    words = shlex.split(page.locator("code", has_text="ldm sample").first.inner_text())
    given = dict(zip(words[5::2], words[6::2], strict=True))  # after `ldm sample MODEL --out samples`
    assert (given["-n"], given["--seed"], given["--classes"], given["--guidance"]) == ("15", "7", "light", "1.6")

    with page.expect_download() as download:
        page.get_by_role("button", name="Grid (PNG)").click()
    monkeypatch.chdir(tmp_path)
    command.main(words[2:], standalone_mode=False)
    assert Path(download.value.path()).read_bytes() == (tmp_path / "samples" / "grid.png").read_bytes()

    assert page.get_by_text("images = model.sample(n=15, seed=7").count()
    assert {urlsplit(address).hostname for address in page.asked if "://" in address} == {"127.0.0.1"}


def test_the_models_of_the_root_are_offered(sampling: str, page: Any) -> None:
    page.goto(sampling)
    page.get_by_text("ldm sample").first.wait_for()
    page.get_by_label("Model").click()
    page.get_by_role("option", name="slow").wait_for()
    page.get_by_role("option", name="fast").click()
    page.get_by_text("ldm sample").first.wait_for()
    assert not page.locator("[data-testid=stException]").count()


CLIPS = """
import numpy as np
import streamlit as st
from pipeline.pages import widgets

red, green = ([[[colour] * 8] * 8] for colour in ([255, 0, 0], [0, 255, 0]))
st.html(widgets.moving(np.array([red + green], np.uint8), 4.0))
"""


def test_clips_move_in_the_browser(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit takes out of HTML what it does not trust; the clip is left, and shows its frames in turn."""
    pytest.importorskip("streamlit", reason="Streamlit is not installed (extra `ui`)")
    from pipeline.pages import serve
    from pipeline.tracking.server import free_port

    script = tmp_path / "pipeline" / "pages" / "sampling_page.py"
    script.parent.mkdir(parents=True)
    script.write_text(CLIPS)
    monkeypatch.setenv("PYTHONPATH", str(serve.SOURCE))
    monkeypatch.setattr(serve, "SOURCE", tmp_path)
    with serve.sampling_page(tmp_path, free_port(8700)) as address:
        page.goto(address)
        clip = page.get_by_alt_text("samples")
        clip.wait_for()
        seen = set()
        for _ in range(80):  # of 250 ms each frame
            shown = np.asarray(Image.open(io.BytesIO(clip.screenshot())).convert("RGB"))
            seen.add(tuple(shown[shown.shape[0] // 2, shown.shape[1] // 2].tolist()))
            if len(seen) == 2:
                break
            page.wait_for_timeout(70)
    assert seen == {(255, 0, 0), (0, 255, 0)}


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A stroke from one place of the canvas to another, as shares of its sides."""
    box = page.locator("canvas.canvas").bounding_box()
    (x0, y0), (x1, y1) = ((box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end))
    page.mouse.move(x0, y0)
    page.mouse.down()
    page.mouse.move(x1, y1, steps=5)
    page.mouse.up()


def fetched(page: Any, button: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return Path(download.value.path()).read_bytes()


def test_a_hole_is_drawn_with_the_mouse_and_filled(
    sampling: str, page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.inpaint import command

    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (12, 12, 3), np.uint8)
    Image.fromarray(pixels).save("given.png")
    page.goto(sampling)
    page.get_by_role("radio", name="Inpaint").click()
    page.locator("input[type=file]").first.set_input_files("given.png")
    page.locator("canvas.canvas").wait_for()
    drag(page, (0.1, 0.9), (0.9, 0.9))  # below, and taken back
    page.get_by_role("button", name="Clear").click()
    drag(page, (0.2, 0.3), (0.8, 0.3))
    page.get_by_role("button", name="Inpaint", exact=True).click()
    page.get_by_text("ldm inpaint").first.wait_for()

    mask = np.asarray(Image.open(io.BytesIO(fetched(page, "The mask"))))
    Image.fromarray(mask).save("mask.png")
    assert mask.shape == (12, 12) and set(np.unique(mask)) == {0, 255}
    across, down = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    assert (down.min(), down.max()) in [(2, 4), (3, 3), (2, 5), (3, 4)] and across.min() in (1, 2)
    assert across.max() in (9, 10) and len(across) == across.max() - across.min() + 1

    with zipfile.ZipFile(io.BytesIO(fetched(page, "Pictures"))) as packed:
        made = [np.asarray(Image.open(io.BytesIO(packed.read(name)))) for name in packed.namelist()]
    words = shlex.split(page.locator("code", has_text="ldm inpaint").first.inner_text())
    command.main(words[2:], standalone_mode=False)
    assert len(made) == 4
    for number, image in enumerate(made):
        assert (image == np.asarray(Image.open(tmp_path / "inpaint-out" / f"given-{number}.png"))).all()
        assert (image == pixels)[mask == 0].all()
    assert {urlsplit(address).hostname for address in page.asked if address.startswith("http")} == {"127.0.0.1"}
