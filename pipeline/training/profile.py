"""A trace of some steps of rank 0 (`training.profile`), which chrome://tracing and Perfetto open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from pipeline.schema.training import Profile


class Log(Protocol):
    """Where the file goes (pipeline/tracking/tracker.py has one)."""

    def file(self, path: str | Path, artifact_path: str = "") -> None: ...


class Tracer:
    """Called before each step; records those that were asked for, then writes `steps-A-B.json.gz` into `folder`."""

    def __init__(self, asked: Profile, folder: Path, log: Log) -> None:
        self.asked, self.folder, self.log = asked, folder, log
        self._profiler: Any = None
        self._last = 0

    def before(self, step: int) -> None:
        """Steps are numbered from 1. What is recorded ends as well where steps are left out, or gone back over."""
        first, end = self.asked.from_, self.asked.from_ + self.asked.steps
        if not first < step < end:
            self.close(self._last)
        if step == first:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=kinds, record_shapes=True)
            self._profiler.start()
        self._last = step

    def close(self, last: int) -> None:
        """Write what was recorded, if anything; `last` is the last step in it."""
        if self._profiler is None:
            return
        self._profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"steps-{self.asked.from_}-{last}.json.gz"
        self._profiler.export_chrome_trace(str(path))
        self.log.file(path, "profile")
        self._profiler = None
