"""Lines that tasks and ranks have for who runs the command: what they print ends in Ray's logs."""

from __future__ import annotations

import sys
from pathlib import Path


class Said:
    """Shows on the driver the lines that are written to files (*.txt) in a folder; called now and then."""

    def __init__(self, folder: Path, name: str = "") -> None:
        """name: of a stage, before each line."""
        self.folder, self.before = folder, f"{name}: " if name else ""
        self.shown = {path: path.stat().st_size for path in folder.glob("*.txt")}  # an earlier command's

    def __call__(self) -> None:
        for path in sorted(self.folder.glob("*.txt")):
            with open(path, "rb") as file:
                file.seek(self.shown.get(path, 0))
                lines = [line for line in file if line.endswith(b"\n")]
            self.shown[path] = self.shown.get(path, 0) + sum(map(len, lines))
            for line in lines:
                print(f"{self.before}{line.decode().rstrip()}", file=sys.stderr, flush=True)
