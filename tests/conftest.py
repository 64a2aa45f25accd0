"""What all tests share."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Leave what was imported and collected to no collector: each engine of DeepSpeed looks through all there is."""
    gc.collect()
    gc.freeze()
