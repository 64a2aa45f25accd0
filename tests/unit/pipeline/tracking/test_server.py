"""How the servers of pages end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.files import write_json
from pipeline.tracking import links
from pipeline.tracking.server import end_on_signals
from pipeline.tracking.spool import process_identity

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_was_ignored_from_the_start_ends_it(number: signal.Signals) -> None:
    """As a shell without job control has it for what it starts by `&`."""
    signal.signal(number, signal.SIG_IGN)
    end_on_signals()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_a_closed_terminal_ends_it_but_for_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    end_on_signals()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    end_on_signals()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGHUP)


def test_a_link_is_given_only_where_something_serves_it(tmp_path: Path) -> None:
    uri = links.resolve_uri(tmp_path)
    run = {"id": "0f", "experiment": "1"}
    write_json(tmp_path / "tracking" / "state.json", {"stores": {uri: {"runs": {"diffusion/ab": run}}}})
    assert links.run_url(tmp_path, "diffusion/ab", uri) is None
    told = {"address": "http://127.0.0.1:5007", "process": process_identity(os.getpid())}
    write_json(tmp_path / "tracking" / links.SERVING, told)
    assert str(links.run_url(tmp_path, "diffusion/ab", uri)).startswith("http://127.0.0.1:5007/#/experiments/1/runs/0f")
    told["process"] = {**process_identity(os.getpid()), "started": 1}  # killed, and its number is another's
    write_json(tmp_path / "tracking" / links.SERVING, told)
    assert links.run_url(tmp_path, "diffusion/ab", uri) is None
