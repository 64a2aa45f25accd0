"""Take the pictures in docs/img of a root's pages: `python tests/browser/screenshots.py [ROOT [RUN RUN]]`.

ROOT (default: runs) holds two finished pipelines or more; the two runs named are compared on a page (default: the last
two). `ROOT IMAGE` takes the picture of the tab Inpaint alone, with a mask painted over the eyes of a face. Needs
Chromium, Playwright and Streamlit.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.pages import compare_page
from pipeline.past import compare, history
from pipeline.tracking.links import chart_link, public_uri, read_store, resolve_uri, run_path, table_link
from pipeline.tracking.server import free_port, prepare, server
from pipeline.tracking.tracker import sync
from tests.browser.conftest import NO_ASSISTANT, TIMEOUT_MS, chromium

DOCS = Path(__file__).parents[2] / "docs" / "img"
SETTLE_MS = 6000  # charts are drawn one after the other
LIMIT = 300_000  # bytes a picture


def take(page: Any, name: str) -> None:
    """A picture of the page as a PNG of 256 colours."""
    page.wait_for_timeout(SETTLE_MS)
    packed = io.BytesIO()
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(256).save(packed, "png", optimize=True)
    assert packed.tell() < LIMIT, f"{name}: {packed.tell()} bytes"
    (DOCS / f"{name}.png").write_bytes(packed.getvalue())
    print(f"docs/img/{name}.png: {packed.tell() // 1000} kB", flush=True)


def shoot(page: Any, address: str, sampling: str, store: dict[str, Any]) -> None:
    experiment = next(iter(store["experiments"].values()))
    pipeline = next(run["id"] for key, run in store["runs"].items() if key.startswith("pipeline/"))
    page.goto(table_link(address, experiment))
    page.get_by_role("gridcell").first.wait_for()
    take(page, "mlflow_list")
    page.goto(chart_link(address, experiment))
    page.get_by_test_id("experiment-view-compare-runs-card").first.wait_for()
    take(page, "mlflow")
    page.get_by_placeholder("Search metric charts").fill("samples/ema")
    page.get_by_text("samples", exact=True).last.scroll_into_view_if_needed()  # cards are drawn when in view
    card = page.get_by_test_id("experiment-view-compare-runs-card").filter(has_text=re.compile("^samples/ema"))
    slider = card.get_by_role("slider")
    while slider.get_attribute("aria-valuenow") != slider.get_attribute("aria-valuemax"):
        slider.press("ArrowRight")
        page.wait_for_timeout(500)
    card.locator("img").first.wait_for()
    card.locator("[data-component-id=fullscreen_button_chartcard]").click()
    take(page, "mlflow_steps")
    page.goto(f"{address}/{run_path(experiment, pipeline)}")
    page.get_by_text("Show more").first.click()
    take(page, "mlflow_run")
    page.goto(f"{address}/{next(iter(store['models'].values()))}")
    page.get_by_role("link", name="latents", exact=True).wait_for()
    take(page, "mlflow_version")
    page.goto(sampling)
    page.get_by_text("ldm sample").first.wait_for()
    take(page, "sampling")


def shoot_inpainting(page: Any, sampling: str, image: str) -> None:
    """The tab Inpaint: a band over the eyes is painted with the mouse, and drawn anew four times."""
    page.goto(sampling)
    page.get_by_role("radio", name="Inpaint").click()
    page.locator("input[type=file]").first.set_input_files(image)
    page.locator("canvas.canvas").wait_for()
    page.wait_for_timeout(SETTLE_MS)
    box = page.locator("canvas.canvas").bounding_box()
    for y in (0.36, 0.44):
        page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + y * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + y * box["height"], steps=8)
        page.mouse.up()
    page.get_by_role("button", name="Inpaint", exact=True).click()
    page.get_by_text("ldm inpaint").first.wait_for()
    page.mouse.move(0, 0)
    take(page, "inpaint_tab")


def shoot_comparison(page: Any, root: Path, runs: Sequence[str]) -> None:
    """The page of `ldm compare RUN RUN --html`."""
    compared = compare.sides(root, runs)
    with tempfile.TemporaryDirectory() as folder:
        compare_page.write(Path(folder) / "page.html", compared, compare.verdict(compared))
        page.goto((Path(folder) / "page.html").as_uri())
        take(page, "compare")


def main(root: Path, runs: Sequence[str]) -> None:
    from playwright.sync_api import sync_playwright

    from pipeline.pages.serve import sampling_page

    options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    if len(runs) == 1:  # an image
        with sampling_page(root, free_port(8700)) as sampling, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=options)
            page = browser.new_page(viewport={"width": 1300, "height": 700})
            page.set_default_timeout(TIMEOUT_MS)
            shoot_inpainting(page, sampling, runs[0])
            browser.close()
        return
    uri = resolve_uri(root)
    sync(root, uri)
    prepare(root, uri)
    print(public_uri(uri), flush=True)
    with (
        server(root, free_port(5200)) as address,
        sampling_page(root, free_port(8700), mlflow=address) as sampling,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium(), args=options)
        context = browser.new_context(viewport={"width": 1400, "height": 800})
        context.add_init_script(NO_ASSISTANT)
        context.set_default_timeout(TIMEOUT_MS)
        shoot(context.new_page(), address, sampling, read_store(root, uri))
        shoot_comparison(context.new_page(), root, runs or [past.key for past in history.pipelines(root)[-2:]])
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"), sys.argv[2:])
