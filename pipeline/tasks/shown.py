"""What the driver shows of a training: how far it is. Lines that ranks have for its user: `cluster/said.py`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from pipeline.errors import many
from pipeline.files import read_json


class Progress:
    """Shows on the driver what rank 0 wrote last: a bar on a terminal, a plain line now and then in a log.

    noun: what a sample is called (`Data.noun`).
    """

    LINE_EVERY = 10.0  # seconds between two lines in a log

    def __init__(self, name: str, path: Path, noun: str) -> None:
        self.name, self.path, self.noun = name, path, noun
        self.bar: Any = None
        self.shown, self.last = 0.0, -1
        path.unlink(missing_ok=True)

    def __call__(self) -> None:
        if not self.path.exists():
            return
        now = read_json(self.path)
        if now["step"] == self.last:
            return
        if self.last < 0:
            print(
                f"{self.name}: {many(len(now['hosts']), 'rank')} on {', '.join(sorted(set(now['hosts'])))}", flush=True
            )
        self.last = now["step"]
        left = time.strftime("%H:%M:%S", time.gmtime(now["seconds_left"]))
        loss = "not finite" if now["loss"] is None else f"{now['loss']:.4f}"
        text = f"loss {loss}, {now['images_per_second']:.0f} {self.noun}s/s, {left} left"
        if sys.stdout.isatty():
            self._bar(now, text)
        elif time.monotonic() - self.shown > self.LINE_EVERY or now["step"] == now["steps"]:
            self.shown = time.monotonic()
            print(f"{self.name}: step {now['step']} of {now['steps']}, {text}", flush=True)

    def _bar(self, now: dict[str, Any], text: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        if self.bar is None:
            self.bar = Bar(TextColumn(self.name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self.bar.start()
            self.bar.add_task(text, total=now["steps"])
        self.bar.update(self.bar.task_ids[0], completed=now["step"], description=text)
        if now["step"] == now["steps"]:
            self.bar.stop()
