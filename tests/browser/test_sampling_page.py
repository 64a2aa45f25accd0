"""The sampling page in a browser: sliders, the grid, the download, and the command that makes the same images."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest


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
