"""The page of `ldm compare --html` in a real browser: the verdict is in sight, curves are drawn, grids step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.pages import compare_page
from pipeline.past import compare
from pipeline.past.compare import Side
from pipeline.past.history import Past
from pipeline.tracking.tracker import Spool

pytestmark = pytest.mark.slow


def side(root: Path, key: str, loss: float) -> Side:
    """A run that trained a diffusion model: a curve that falls from 2 to `loss`, and two grids."""
    folder = root / "artifacts" / "diffusion" / (key * 16)
    run = f"diffusion/{key * 16}/aaaaaaaa"
    spool = Spool(folder / "work" / "spool", run, 1)
    for step in range(1, 101):
        spool.metrics({"diffusion/train_loss": 2 - (2 - loss) * step / 100}, step)
    spool.metrics({"diffusion/val_loss": loss}, 100)
    for step in (50, 100):
        spool.image("samples/ema", np.full((16, 16, 3), step, np.uint8), step)
    params = {"diffusion.training.learning_rate": key}
    past = Past(root, key * 16, f"rate {key}", "FINISHED", 0, 1, params, {"diffusion": run}, {"diffusion": folder})
    return Side(past, past.name)


def test_which_run_is_better_is_seen_at_once(tmp_path: Path, page: Any) -> None:
    compared = [side(tmp_path, "1", 1.5), side(tmp_path, "2", 0.5)]
    compare_page.write(tmp_path / "page.html", compared, compare.verdict(compared))
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else wrong.append(asked.url))
    page.goto((tmp_path / "page.html").as_uri())
    verdict = page.locator(".verdict")
    assert verdict.inner_text().startswith("rate 2 is better: validation loss of the diffusion model 0.5 against 1.5")
    assert verdict.bounding_box()["y"] < 150
    assert page.locator("figure.chart path").count() == 2
    lines = page.locator("figure.chart path")
    assert [lines.nth(i).get_attribute("stroke") for i in range(2)] == list(compare_page.COLOURS[:2])
    page.locator("figure.chart svg").first.hover()
    assert "at step" in page.locator(".tip").first.inner_text()
    shown = page.locator(".grid img.on")
    assert [shown.nth(i).get_attribute("data-step") for i in range(2)] == ["100", "100"]
    page.locator(".pictures input").fill("0")
    assert [shown.nth(i).get_attribute("data-step") for i in range(2)] == ["50", "50"]
    assert not wrong
