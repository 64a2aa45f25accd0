"""What a verb shows at its end: the stages, links where a server has the pages, the next commands."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.common import following, table
from pipeline.config import load
from pipeline.tracking import links

DIGITS = Path(__file__).parents[3] / "jobs" / "configs" / "digits.yaml"


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = {"experiment": "1", "id": "abc"}
    monkeypatch.setattr(links, "read_store", lambda *_: {"runs": {"diffusion/ab12": run}})
    artifact = SimpleNamespace(stage="diffusion", fingerprint="ab12" * 4, key="diffusion/ab12")
    monkeypatch.setattr("pipeline.tracking.runs.run_key", lambda artifact: artifact.key)
    return [SimpleNamespace(artifact=artifact, cached=False, seconds=1.0, headline="validation loss 0.5")]


def test_a_page_that_nothing_serves_is_no_link(done: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    table(done, load(DIGITS, []))
    said = capsys.readouterr().out
    assert "validation loss 0.5" in said and "http" not in said and "link" not in said
    table(done, load(DIGITS, ["tracking.uri=http://tracker:5000"]))
    assert "http://tracker:5000/#/experiments/1/runs/abc" in capsys.readouterr().out


def test_the_last_words_are_the_next_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(DIGITS, ["run.root=my runs", "run.name=mine"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    said = following(["ingest", "autoencoder"], config, Path("a b.yaml"), ["run.name=mine"])
    assert [line.split("  # ")[0].strip() for line in said] == [
        "next:",
        "ldm run 'a b.yaml' run.name=mine",
        "ldm ui --root 'my runs'",
    ]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    said = following(["diffusion", "evaluate", "register"], load(DIGITS, ["run.root=runs"]), DIGITS, [])
    assert [line.split("  # ")[0].strip() for line in said] == [
        "next:",
        "ldm sample digits --out samples",
        "ldm mlflow ui",
    ]
