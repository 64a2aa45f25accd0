"""Of all tests of pages."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def main_module_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit (1.67) puts the page's script in the place of `__main__` and leaves it there; processes that a later
    test in this one starts by a fork server would run it."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
