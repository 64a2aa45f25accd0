"""What a person sees in MLflow: the list of pipelines, two compared, images by step, what a version is made of."""

from __future__ import annotations

import re
from typing import Any

from pipeline.tracking import chart_link, run_path, table_link


def test_the_list_of_pipelines_shows_scores_and_opens_by_its_link(site: Any, page: Any) -> None:
    page.goto(table_link(site.address, site.experiment))
    for name in ("slow", "fast"):
        page.get_by_role("link", name=name, exact=True).wait_for()
    assert not page.get_by_role("link", name="4 diffusion").count()  # stages are folded into their pipeline
    heads = page.get_by_role("columnheader").all_inner_texts()
    shown = [head for head in heads if "/" in head]
    assert shown[:2] == ["eval/class_accuracy", "eval/psnr"]  # of our columns those that a run has, in our order
    cells = page.get_by_role("gridcell").all_inner_texts()
    assert {"0.001", "0.00001"} <= {cell.strip() for cell in cells} or {"0.001", "1e-05"} <= set(cells)  # the rates


def test_two_pipelines_are_compared_on_one_page(site: Any, page: Any) -> None:
    page.goto(chart_link(site.address, site.experiment))
    for section in ("autoencoder", "diffusion", "eval"):
        page.get_by_text(re.compile(rf"^{section} \(\d+\)$")).first.wait_for()
    page.get_by_placeholder("Search metric charts").fill("diffusion/val_loss")
    for name in ("slow", "fast"):  # the legend: both lines are in one chart
        page.get_by_text(f"{name} (diffusion/val_loss)").first.wait_for()


def test_grids_step(site: Any, page: Any) -> None:
    path = run_path(site.experiment, site.run_id("diffusion")).replace("?", "/model-metrics?")
    page.goto(f"{site.address}/{path}")
    page.get_by_placeholder("Search metric charts").fill("samples/ema")
    slider = page.get_by_role("slider").first
    slider.wait_for()
    picture = page.locator("img[src*='samples']").first
    picture.wait_for()
    first = picture.get_attribute("src")
    assert slider.get_attribute("aria-valuenow") == "2"
    slider.focus()
    slider.press("ArrowRight")
    page.wait_for_function("before => document.querySelector(\"img[src*='samples']\").src !== before", arg=first)
    assert slider.get_attribute("aria-valuenow") == "4"


def test_a_version_leads_to_all_that_it_is_made_of(site: Any, page: Any) -> None:
    link = next(link for key, link in site.store["models"].items() if key.startswith("register/"))
    page.goto(f"{site.address}/{link}")
    names = {"data": "1 ingest", "autoencoder": "2 autoencoder", "latents": "3 encode", "denoiser": "4 diffusion"}
    for word, run in {**names, "scores": "5 evaluate"}.items():
        with page.context.expect_page() as opened:
            page.get_by_role("link", name=word, exact=True).click()
        opened.value.get_by_role("heading", name=run).wait_for()
        opened.value.close()
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="config", exact=True).click()
    opened.value.get_by_text("kl_weight").first.wait_for()  # the file itself is shown
    first = page.get_by_text("of samples in their class").first.inner_text()
    assert "PSNR" in first
