"""Files that a table names, found beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pipeline.errors import many


class Paths:
    """Finds the files that a table names, beside it, and counts those whose names had to be mended for that."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._did: Counter[str] = Counter()

    def find(self, name: str) -> tuple[str, Path | None]:
        """(the name that fits, its file), or (name, None): as written, without blanks around it, with slashes."""
        bare = name.strip()
        for tried, how in ((name, "as written"), (bare, "blanks around"), (bare.replace("\\", "/"), "backslashes in")):
            if (file := _file(self._folder, tried)) is not None:
                self._did[how] += 1
                return tried, file
        return name, None

    def notes(self) -> list[str]:
        """What was mended, each in a line."""
        return [f"{many(self._did[how], 'path')} of images found without {how.replace(' in', '')}"
                for how in ("blanks around", "backslashes in") if self._did[how]]  # fmt: skip


def _file(folder: Path, name: str) -> Path | None:
    try:
        return folder / name if (folder / name).is_file() else None
    except (OSError, ValueError):  # too long, or no name that this file system takes
        return None
