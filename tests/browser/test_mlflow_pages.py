"""What a person sees in MLflow: the list of pipelines, two compared, images by step, what a version is made of."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipeline.tracking.links import chart_link, table_link

pytestmark = pytest.mark.slow


def test_the_list_of_pipelines_shows_scores_and_opens_by_its_link(site: Any, page: Any) -> None:
    page.goto(table_link(site.address, site.experiment))
    for name in ("slow", "fast"):
        page.get_by_role("link", name=name, exact=True).wait_for()
    assert not page.get_by_role("link", name="4 diffusion").count()  # stages are folded into their pipeline
    heads = page.locator(".ag-header-cell").all()
    shown = sorted((int(head.get_attribute("aria-colindex")), head.inner_text().strip()) for head in heads)
    ours = ["eval/class_accuracy", "eval/psnr", "diffusion/val_loss", "autoencoder/val_psnr"]  # those a run has
    assert [name for _, name in shown if "/" in name] == ours
    cells = {cell.strip() for cell in page.get_by_role("gridcell").all_inner_texts()}
    assert {"0.001", "1e-05"} <= cells  # the learning rates, by which the two differ


def test_two_pipelines_are_compared_on_one_page(site: Any, page: Any) -> None:
    page.goto(chart_link(site.address, site.experiment))
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    cards.first.wait_for()
    for name in ("slow", "fast"):  # the scores come first, both pipelines in one chart
        cards.first.filter(has_text="eval/").get_by_text(name).first.wait_for()
    page.get_by_placeholder("Search metric charts").fill("diffusion/val_loss")
    page.get_by_text("diffusion", exact=True).last.scroll_into_view_if_needed()  # cards are drawn when in view
    card = cards.filter(has_text=re.compile("^diffusion/val_loss"))
    for name in ("slow", "fast"):
        card.get_by_text(name).first.wait_for()


def test_grids_step(site: Any, page: Any) -> None:
    """The picture changes with the slider, and the params do not push it out of its card."""
    page.goto(chart_link(site.address, site.experiment))
    page.get_by_placeholder("Search metric charts").fill("samples/ema")
    card = page.get_by_test_id("experiment-view-compare-runs-card").filter(has_text=re.compile("^samples/ema"))
    slider = card.get_by_role("slider")
    slider.wait_for()
    assert "learning_rate" not in card.inner_text()
    for step in ("2", "4"):
        slider.focus()
        slider.press("ArrowRight")
        picture = card.locator(f"img[src*='samples~ema%2Bstep%2B{step}%2B']").first
        picture.wait_for()
        assert slider.get_attribute("aria-valuenow") == step
        assert picture.bounding_box()["height"] > 100


def test_a_version_leads_to_all_that_it_is_made_of(site: Any, page: Any) -> None:
    link = next(link for key, link in site.store["models"].items() if key.startswith("register/"))
    page.goto(f"{site.address}/{link}")
    names = {"data": "1 ingest", "autoencoder": "2 autoencoder", "latents": "3 encode", "denoiser": "4 diffusion"}
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="data", exact=True).click()
    made_of = opened.value
    for word, run in {**names, "scores": "5 evaluate"}.items():  # each in the tab of the first: MLflow is loaded once
        made_of.goto(page.get_by_role("link", name=word, exact=True).evaluate("link => link.href"))
        made_of.get_by_role("heading", name=run).wait_for()
    made_of.goto(page.get_by_role("link", name="config", exact=True).evaluate("link => link.href"))
    made_of.get_by_text("kl_weight").first.wait_for()  # the file itself is shown
    first = page.get_by_text("of samples in their class").first.inner_text()
    assert "PSNR" in first
