"""The benchmarks that build on the pipeline's inner functions still run; what they measure is not looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "benchmarks" / "run.py"


@pytest.mark.parametrize("name", ["cache", "draws", "save"])
def test_a_few_rounds(name: str) -> None:
    done = subprocess.run([sys.executable, RUN, name, "--short"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert f"{name} (" in done.stdout
