"""`ldm ui` as a process: it answers, and leaves nothing behind when it is stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.pages.serve import sampling_page, serve
from pipeline.tracking.server import check_port, free_port

ROOT = Path(__file__).parents[2]


def heed_signals() -> None:
    """As in a terminal: a program that a script put into the background, or nohup, inherits that they are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_it_ends_cleanly(number: int, tmp_path: Path) -> None:
    pytest.importorskip("streamlit")
    command = [sys.executable, "-m", "jobs.ui", str(tmp_path / "model"), "--root", str(tmp_path)]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")  # the page tells a browser that it is not whole
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path, preexec_fn=heed_signals
    ) as process:
        try:
            assert process.stdout is not None
            found = re.fullmatch(r"sampling page: (http://127.0.0.1:(\d+))\n", process.stdout.readline())
            assert found
            with urllib.request.urlopen(found[1], timeout=60) as answer:
                assert answer.status == 200
            process.send_signal(number)
            assert process.wait(60) == 0
        finally:
            process.kill()
    check_port(int(found[2]))  # free again: the page's own process is gone


def test_a_port_that_is_taken_is_passed_over_or_named() -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert free_port(port) > port
        with pytest.raises(UserError, match=f"port {port} is taken"), sampling_page("runs", port):
            pass


def test_without_runs_and_model_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ldm ui MODEL"):
        serve(tmp_path / "none")
    with pytest.raises(UserError, match="no model is there"):
        serve(tmp_path, model=str(tmp_path / "none"))
