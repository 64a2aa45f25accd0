"""What a source holds: its images in a fixed order, with digests that are remembered between runs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError
from pipeline.files import read_json, sha256_file, write_json

if TYPE_CHECKING:
    pass

Array = np.ndarray[Any, np.dtype[Any]]
FORMAT = 1  # raise it when a listing's meaning changes


@dataclass(frozen=True)
class Row:
    """One image of a source: its key, where its bytes are (a path, or a row of an array), and what is known of it."""

    key: str
    location: str | int
    digest: str  # SHA-256 of the file's bytes, or of the array's row
    label: str | None = None
    caption: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """All images of a source in a fixed order, its class names, and what was named but is not there.

    notes: what was found and mended that a user may want to know, each in a line.
    """

    rows: list[Row]
    classes: list[str]
    missing: list[str]
    notes: list[str] = field(default_factory=list)


class Digests:
    """SHA-256 of files, remembered by path, size and mtime, so that a second run reads no image again."""

    reads = True  # whether there are digests at all

    def __init__(self, path: Path | None) -> None:
        """`path`: the JSON file that remembers, or None."""
        self._path = path
        self._known: dict[str, list[Any]] = {}
        self._used: dict[str, list[Any]] = {}
        if path is not None and path.exists():
            self._known = read_json(path)

    def of(self, file: str | Path) -> str:
        """SHA-256 (hex) of a file's bytes. Raises FileNotFoundError."""
        name, stat = str(Path(file).absolute()), Path(file).stat()
        known = self._known.get(name)
        if known is None or known[:2] != [stat.st_size, stat.st_mtime_ns]:
            known = [stat.st_size, stat.st_mtime_ns, sha256_file(file)]
        self._used[name] = known
        return str(known[2])

    def save(self) -> None:
        """Keep the digests of the files that were asked for."""
        if self._path is not None and self._used != self._known:
            write_json(self._path, self._used)


class Unread(Digests):
    """Lists without reading the images: their digests are empty."""

    reads = False

    def __init__(self) -> None:
        super().__init__(None)

    def of(self, file: str | Path) -> str:
        return ""


def class_order(labels: Iterable[str]) -> list[str]:
    """Distinct labels, as numbers where all are whole numbers, else by name."""
    distinct = set(labels)
    if all(re.fullmatch(r"-?\d+", label) for label in distinct):
        return sorted(distinct, key=int)
    return sorted(distinct)


def existing(path: str) -> Path:
    if not Path(path).exists():
        raise UserError(f"data.source: {path} does not exist (looked from {Path.cwd()}): correct the path")
    return Path(path)
