"""What a source holds: its images in a fixed order, with digests that are remembered between runs."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.files import read_json, sha256_file, write_json

Array = np.ndarray[Any, np.dtype[Any]]
FORMAT = 1  # raise it when a listing's meaning changes


@dataclass(frozen=True)
class Row:
    """One image of a source: its key, where its bytes are (a path, or a row of an array), and what is known of it.

    together: what rows share that are held out together (files of one name but for the suffix, pieces of a file, tiles
    that overlap): the split takes it in place of their keys.
    """

    key: str
    location: str | int
    digest: str  # SHA-256 of the file's bytes, or of the array's row
    label: str | None = None
    caption: str | list[str] | None = None  # several in a list
    attributes: dict[str, Any] = field(default_factory=dict)
    together: str | None = None


class LeftOut:
    """What lies in a source and is no image of it: how many by reason, and the first of each."""

    def __init__(self, found: Mapping[str, Sequence[Any]] | None = None) -> None:
        """`found`: as `json` gives it."""
        self._found: dict[str, tuple[int, str]] = {
            reason: (int(count), str(first)) for reason, (count, first) in (found or {}).items()
        }

    def add(self, reason: str, first: str, count: int = 1) -> None:
        """Count one more; `first` is kept for the first of a reason."""
        before, kept = self._found.get(reason, (0, plain(first)))
        self._found[reason] = (before + count, kept)

    def update(self, other: LeftOut) -> None:
        """Add what another one has counted."""
        for reason, (count, first) in other._found.items():
            self.add(reason, first, count)

    def __bool__(self) -> bool:
        return bool(self._found)

    def json(self) -> dict[str, list[Any]]:
        """reason -> [count, the first]."""
        return {reason: list(found) for reason, found in sorted(self._found.items())}

    def __str__(self) -> str:
        return "; ".join(f"{count:,} {reason} (such as {first})" for reason, (count, first) in self._found.items())


@dataclass(frozen=True)
class Listing:
    """All images of a source in a fixed order, its class names, what was named but is not there, and what lies there
    but was not taken.

    notes: what was found and mended that a user may want to know, each in a line. bad: what is named and no sample, as
    the quarantine's lines have it.
    """

    rows: list[Row]
    classes: list[str]
    missing: list[str]
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: list[str] = field(default_factory=list)
    bad: list[dict[str, str]] = field(default_factory=list)


_forget: ContextVar[bool] = ContextVar("forget", default=False)


@contextmanager
def forgetting() -> Iterator[None]:
    """Digests that are computed within are not stored: a dry run writes nothing."""
    token = _forget.set(True)
    try:
        yield
    finally:
        _forget.reset(token)


class Digests:
    """SHA-256 of files, remembered by path, size and mtime, so that a second run reads no image again."""

    reads = True  # whether there are digests at all

    def __init__(self, path: Path | None, private: bool = False) -> None:
        """`path`: the JSON file that remembers, or None. private: names are kept as digests (they may name people)."""
        self._path, self._private = path, private
        self._known: dict[str, list[Any]] = {}
        self._used: dict[str, list[Any]] = {}
        if path is not None and path.exists():
            self._known = read_json(path)

    def of(self, file: str | Path) -> str:
        """SHA-256 (hex) of a file's bytes. UserError where it cannot be read; where names are private, OSError."""
        try:
            return self._of(file)
        except OSError as error:
            if self._private:
                raise
            raise UserError(f"{plain(str(file))}: {error.strerror}; give rights to read it, or move it away") from None

    def _of(self, file: str | Path) -> str:
        name, stat = str(Path(file).absolute()), Path(file).stat()
        if self._private:
            name = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
        known = self._known.get(name)
        if known is None or known[:2] != [stat.st_size, stat.st_mtime_ns]:
            known = [stat.st_size, stat.st_mtime_ns, sha256_file(file)]
        self._used[name] = known
        return str(known[2])

    def save(self) -> None:
        """Keep the digests of the files that were asked for."""
        if self._path is not None and not _forget.get() and self._used != self._known:
            write_json(self._path, self._used)


class Unread(Digests):
    """Lists without reading the images: a file's digest is its name."""

    reads = False

    def __init__(self) -> None:
        super().__init__(None)

    def of(self, file: str | Path) -> str:
        return str(file)


def class_order(labels: Iterable[str]) -> list[str]:
    """Distinct labels, as numbers where all are whole numbers (`1` and `01` by name), else by name."""
    distinct = sorted(set(labels))
    if all(re.fullmatch(r"-?\d+", label) for label in distinct):
        return sorted(distinct, key=int)
    return distinct


def plain(text: str) -> str:
    """`text` as every encoder takes it: a name's bytes that are no UTF-8 become %XX, as in `shards.safe_key`.

    Python reads such bytes as surrogates, which no encoder writes. Other text stays as it is, its % too.
    """
    if text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text):
        return text

    def written(letter: str) -> str:
        if "\udc80" <= letter <= "\udcff":
            return f"%{ord(letter) - 0xDC00:02X}"
        if "\ud800" <= letter <= "\udfff":  # half of a pair, as JSON may hold it
            return f"%u{ord(letter):04X}"
        return "%25" if letter == "%" else letter

    return "".join(map(written, text))


def keys_of(names: Sequence[str]) -> list[str]:
    """The key of each file (a path inside the source): without its suffix, but with it where keys would be alike."""
    short = [plain(str(PurePosixPath(name).with_suffix(""))) for name in names]
    keys = short
    while True:
        again = Counter(keys)
        kept = [key if again[key] == 1 else plain(name) for key, name in zip(keys, names, strict=True)]
        if kept == keys:
            return keys
        keys = kept


def existing(path: str) -> Path:
    """The path, if something is there. UserError else, and for a name that no config can hold."""
    if plain(path) != path:
        raise UserError(f"data.source: {plain(path)}: the path is not UTF-8; rename it, or make a link to it")
    if not Path(path).exists():
        raise UserError(f"data.source: {path} does not exist (looked from {Path.cwd()}): correct the path")
    return Path(path)
