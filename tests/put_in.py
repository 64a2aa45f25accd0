"""A kind of model of a test's own, put beside those of a family."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path


@contextmanager
def put_in(family: str, source: str) -> Iterator[str]:
    """Puts the file into `models.<family>`, gives its kind, and takes it out again."""
    name = "put_in_by_a_test"
    file = Path(str(import_module(f"models.{family}").__file__)).with_name(f"{name}.py")
    file.write_text(source)
    yield name
    file.unlink()
    for compiled in file.parent.glob(f"__pycache__/{name}.*"):
        compiled.unlink()
    sys.modules.pop(f"models.{family}.{name}", None)
