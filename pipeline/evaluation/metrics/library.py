"""torchmetrics without transformers, which it imports for metrics of text wherever that is installed: two seconds in
each process, for what nobody here uses (seen with torchmetrics 1.9.0, transformers 5.24.0)."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _Absent(ModuleType):
    """Has every name that is imported from it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def torchmetrics(module: str) -> Any:
    """A module of torchmetrics, such as "functional.image"."""
    stands = "transformers" not in sys.modules and "torchmetrics" not in sys.modules
    if stands:
        sys.modules["transformers"] = _Absent("transformers")
    try:
        return importlib.import_module(f"torchmetrics.{module}")
    finally:
        if stands:
            del sys.modules["transformers"]
