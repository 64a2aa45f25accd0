"""What all tests share."""

from __future__ import annotations

import gc

import pytest

SLOW_FIRST = ("tests/integration/test_ray.py", "tests/integration/", "tests/browser/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, so that all processes end together."""
    items.sort(key=lambda item: [not item.nodeid.startswith(path) for path in SLOW_FIRST])


def pytest_collection_finish() -> None:
    """Leave what was imported and collected to no collector: each engine of DeepSpeed looks through all there is."""
    gc.collect()
    gc.freeze()
