"""The benchmarks that build on the pipeline's inner functions still run; what they measure is not looked at."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parents[1] / "benchmarks"


def test_the_command() -> None:
    command = [sys.executable, FOLDER / "run.py", "save", "--short"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "save (" in done.stdout


@pytest.mark.parametrize("name", ["cache", "draws"])
def test_a_few_rounds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    assert importlib.import_module(name).measure(2)
