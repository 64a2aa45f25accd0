"""MLflow's pages over a root's SQLite file, on this machine only (`make ui`). Starts and stops `mlflow server`."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.tracking.links import (
    SERVING,
    chart_link,
    public_uri,
    read_store,
    resolve_uri,
    table_link,
    tracking_folder,
)
from pipeline.tracking.spool import process_identity
from pipeline.tracking.tracker import sync

QUIET = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes instead of 15
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "PYTHONWARNINGS": "ignore",
}
START_S = 120.0  # the server's imports take 10 s on a quiet machine


@contextmanager
def server(root: str | Path, port: int = 5000, uri: str | None = None) -> Iterator[str]:
    """Serve the SQLite tracker of `root` on 127.0.0.1; gives the address when it answers, and ends all its processes.

    UserError if the port is taken or the server does not come up (its log: `<root>/tracking/server.log`).
    """
    root = Path(root).absolute()
    check_port(port)
    folder = tracking_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", resolve_uri(root, uri)]
    command += ["--artifacts-destination", str(root / "mlartifacts"), "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=os.environ | QUIET, start_new_session=True
        )
    try:
        wait_until_up(process, port, folder / "server.log", "the MLflow server", "/health")
        address = f"http://127.0.0.1:{port}"
        write_json(folder / SERVING, {"address": address, "process": process_identity(process.pid)})
        yield address
    finally:
        (folder / SERVING).unlink(missing_ok=True)
        stop(process)


def check_port(port: int) -> None:
    """UserError if another program listens on the port of the loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"port {port} is taken on this machine ({error.strerror}); choose another: --port N"
            ) from error


def free_port(first: int) -> int:
    """`first`, or the next port after it that is free."""
    for port in range(first, first + 100):
        try:
            check_port(port)
        except UserError:
            continue
        return port
    raise UserError(f"no free port from {first} to {first + 99}; choose one: --port N")


def wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path, what: str, health: str) -> None:
    """Ask a server's health page until it answers. UserError, with the log's end, if it does not."""
    give_up = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < give_up:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", health)
            if connection.getresponse().status == 200:
                return
        except (http.client.HTTPException, OSError):
            time.sleep(0.2)  # not there yet
    last = " ".join(log.read_text(errors="replace").split())[-300:]
    raise UserError(f"{what} did not come up on port {port} ({log}): {last}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and the workers it started (they share its process group): TERM, after 10 s KILL."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(10)
        except ProcessLookupError:
            break  # none is left
        except subprocess.TimeoutExpired:
            continue


def end_on_signals() -> None:
    """SIGTERM, and SIGHUP of a closed terminal, end as Ctrl-C does: no server is left behind.

    So does SIGINT where a script's `&` had it ignored from the start: Python leaves it so, and nothing would end it.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` has it
        signal.signal(signal.SIGHUP, leave)


def serve(root: str | Path, port: int = 5000, uri: str | None = None) -> None:
    """`make ui`: send what is left, serve until Ctrl-C or SIGTERM, print the links that show pipelines as charts."""
    uri = resolve_uri(root, uri)
    if uri.startswith("http"):
        print_links(root, uri, public_uri(uri))
        return
    if not tracking_folder(root).exists():
        raise UserError(
            f"{root}: nothing has been tracked here yet; expected the folder of a run; type `make demo` first"
        )
    end_on_signals()
    try:
        send_left(root, uri)
        prepare(root, uri)
        with server(root, port, uri) as address:
            print_links(root, uri, address)
            signal.pause()
    except KeyboardInterrupt:
        print("stopped")


def send_left(root: str | Path, uri: str) -> None:
    """Send the tracker what it has missed. What it does not take is said, and the pages are served all the same: it is
    there that an experiment is restored."""
    try:
        sync(root, uri)
    except UserError as error:
        print(error, flush=True)


def prepare(root: str | Path, uri: str) -> None:
    """Bring the pages of experiments up to date that an older version made: the links need what they point to."""
    from pipeline.tracking.mlflow_calls import Held
    from pipeline.tracking.mlflow_store import MlflowStore

    store = MlflowStore(uri, Path(root).absolute())
    for name in read_store(root, uri).get("experiments", {}):
        with suppress(Held):  # one that was deleted has no pages
            store.experiment(name)


def print_links(root: str | Path, uri: str, address: str) -> None:
    """Two lines an experiment: its list of pipelines with scores, and its charts."""
    experiments: dict[str, str] = read_store(root, uri).get("experiments", {})
    for name, identifier in experiments.items():
        print(f"{name}, table: {table_link(address, identifier)}", flush=True)
        print(f"{name}, charts: {chart_link(address, identifier)}", flush=True)
    if not experiments:
        print(f"no runs yet: {address}", flush=True)
