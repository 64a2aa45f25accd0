"""`ldm ui`: MLflow's pages and the sampling page together, on this machine only, until Ctrl-C.

MLflow's server is `tracking/server.py`'s, the page's content `sampling_page.py`'s.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import SOURCE
from pipeline.pages.widgets import UPLOAD_MB
from pipeline.tracking.links import public_uri, resolve_uri, tracking_folder
from pipeline.tracking.server import (
    check_port,
    end_on_signals,
    free_port,
    prepare,
    print_links,
    send_left,
    server,
    stop,
    wait_until_up,
)

OPTIONS = {  # Streamlit's: the loopback only, no telemetry, no questions, nothing that is watched or sent elsewhere
    "server.address": "127.0.0.1",
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "server.showEmailPrompt": "false",
    "server.maxUploadSize": str(UPLOAD_MB),
    "browser.gatherUsageStats": "false",
    "browser.serverAddress": "127.0.0.1",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "global.developmentMode": "false",
}


@contextmanager
def sampling_page(root: str | Path, port: int, model: str | None = None, mlflow: str = "") -> Iterator[str]:
    """Serve the sampling page on 127.0.0.1; gives the address when it answers, and ends all its processes.

    `model`: one more than those under `root`. `mlflow`: an address to link to. UserError if Streamlit is not there, the
    port is taken, or the page does not come up.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise UserError("the sampling page needs Streamlit; type: pip install -e '.[ui]'; or `ldm mlflow ui`")
    check_port(port)
    command = [sys.executable, "-m", "streamlit", "run", str(SOURCE / "pipeline" / "pages" / "sampling_page.py")]
    command += [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
    command += ["--server.port", str(port), "--", "--root", str(root), "--mlflow", mlflow]
    command += [model] if model else []
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        with open(Path(folder) / "page.log", "wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": path}, start_new_session=True
            )
        try:
            wait_until_up(process, port, Path(folder) / "page.log", "the sampling page", "/_stcore/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            stop(process)


def serve(
    root: str | Path, model: str | None = None, port: int | None = None, page: int | None = None, uri: str | None = None
) -> None:
    """Serve both until Ctrl-C, SIGTERM or a closed terminal; print their addresses. Ports: free ones by default.

    Without runs under `root` there is the sampling page alone (`model` must be given); a tracker elsewhere (http) is
    linked, not served.
    """
    uri, tracked = resolve_uri(root, uri), tracking_folder(root).exists()
    if not model and not Path(root).exists():
        raise UserError(f"{root}: no runs here; expected the folder of a run (--root), or a model: `ldm ui MODEL`")
    if (
        model
        and not model.startswith("models:")
        and not any((Path(model) / name).is_file() for name in ("config.json", "manifest.json"))
    ):
        raise UserError(
            f"{model}: no model is there; give a model folder, a diffusion artifact's folder, or models:/NAME@ALIAS"
        )
    end_on_signals()
    with ExitStack() as stack:
        try:
            address = ""
            if uri.startswith("http"):
                address = public_uri(uri)
            elif tracked:
                send_left(root, uri)
                prepare(root, uri)
                address = stack.enter_context(server(root, port or free_port(5000), uri))
            page_address = stack.enter_context(sampling_page(root, page or free_port(8501), model, address))
            if address:
                print_links(root, uri, address)
            print(f"sampling page: {page_address}", flush=True)
            signal.pause()
        except KeyboardInterrupt:
            print("stopped")
