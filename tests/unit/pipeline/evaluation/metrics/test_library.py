"""torchmetrics leaves transformers where it is."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_torchmetrics_comes_without_transformers() -> None:
    pytest.importorskip("transformers", reason="the extra `text` is not installed")
    program = (
        "import sys; from pipeline.evaluation.metrics.library import torchmetrics; "
        "torchmetrics('functional.image').peak_signal_noise_ratio; "
        "assert 'transformers' not in sys.modules; import transformers; assert transformers.__spec__.origin"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
