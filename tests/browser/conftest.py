"""A real Chromium over a real `mlflow server` and a real sampling page; two small pipelines to look at.

Without Chromium or Playwright these tests skip and say so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.integration.conftest import CONFIG, NoShipper, OneProcess, database, sync  # noqa: F401 (a fixture)

TIMEOUT_MS = 180_000  # a page comes within 2 s on a quiet machine
NO_ASSISTANT = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""  # MLflow opens a panel over its pages in a fresh browser


@dataclass(frozen=True)
class Site:
    """Two pipelines of one autoencoder, `slow` and `fast` by their learning rates, and the server that shows them."""

    root: Path
    address: str

    @property
    def store(self) -> dict[str, Any]:
        from pipeline.tracking.links import read_store, resolve_uri

        return read_store(self.root, resolve_uri(self.root))

    @property
    def experiment(self) -> str:
        return str(self.store["experiments"]["latent-diffusion"])

    def run_id(self, stage: str) -> str:
        """The MLflow run of the first run key that begins with `stage`."""
        return str(next(run["id"] for key, run in self.store["runs"].items() if key.startswith(f"{stage}/")))


def chromium() -> str:
    """Where Chromium lies; skips the tests where it does not."""
    pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra `dev`)")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        running = playwright.chromium.launch(executable_path=path, args=options, timeout=TIMEOUT_MS)
        yield running
        running.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A fresh page of a fresh browser profile. `page.asked` are the addresses that it asked for."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    context.add_init_script(NO_ASSISTANT)
    context.set_default_timeout(TIMEOUT_MS)
    opened = context.new_page()
    opened.asked = []
    opened.on("request", lambda request: opened.asked.append(request.url))
    yield opened
    context.close()


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory, database: bytes) -> Path:  # noqa: F811
    """The root of two small pipelines, run in this process and sent to SQLite."""
    chromium()
    folder = tmp_path_factory.mktemp("pipelines")
    (folder / "root").mkdir()
    (folder / "root" / "mlflow.db").write_bytes(database)
    generator = np.random.default_rng(0)
    for i in range(160):
        path = folder / "images" / ("dark", "light")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(128 * (i % 2), 128 + 127 * (i % 2), (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / "small.yaml").write_text(CONFIG.format(root=folder / "root", images=folder / "images"))
    few = ["evaluate.samples=32", "evaluate.steps=2", "evaluate.guidance=1.5", "diffusion.condition.kind=class"]
    few += ["diffusion.training.preview_every=2", "diffusion.training.steps=4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("pipeline.cluster.cluster.Cluster", OneProcess)
        patch.setattr("pipeline.tracking.tracker.start", lambda *_: NoShipper())
        from pipeline import config
        from pipeline.stages import graph

        for name, rate in (("slow", "1e-5"), ("fast", "1e-3")):
            overrides = [*few, f"run.name={name}", f"diffusion.training.learning_rate={rate}"]
            graph.run(config.load(folder / "small.yaml", overrides))
        sync(folder / "root")
    return folder / "root"


@pytest.fixture(scope="session")
def site(pipelines: Path) -> Iterator[Site]:
    from pipeline.tracking.server import free_port, server

    with server(pipelines, free_port(5100)) as address:
        yield Site(pipelines, address)


@pytest.fixture(scope="session")
def sampling(pipelines: Path) -> Iterator[str]:
    """The sampling page over the two pipelines: its address."""
    pytest.importorskip("streamlit", reason="Streamlit is not installed (extra `ui`)")
    from pipeline.pages.serve import sampling_page
    from pipeline.tracking.server import free_port

    with sampling_page(pipelines, free_port(8600)) as address:
        yield address
