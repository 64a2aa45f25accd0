"""What to do when training goes wrong: steps whose gradient is not finite or far too large, stretches to leave out, a
step that hangs.

Whether a step was bad is found by engine.py; going back to a checkpoint is loop.py's business.
"""

from __future__ import annotations

import math
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from pipeline.errors import UserError

Stretch = tuple[int, int]  # positions [from, to), in samples

SPIKE, WINDOW = 10.0, 64  # a spike is a gradient norm over so many times the median of the last so many good steps


class Guard:
    """Counts bad steps in a row and spikes, and keeps the stretches of positions that training leaves out.

    max_bad: so many in a row end the patience. skip: stretches known from the start. The order of samples is a function
    of position, so a replayed stretch would meet the same values: after a roll-back it is jumped over.
    """

    def __init__(self, max_bad: int, skip: Iterable[Stretch] = ()) -> None:
        self.max_bad = max_bad
        self.skip: list[Stretch] = sorted((int(a), int(b)) for a, b in skip)
        self.bad = 0  # bad steps in a row, up to now
        self.total = 0  # bad steps in all
        self.spikes = 0  # good steps with a gradient norm far over the usual
        self._from = 0  # position of the first of the bad steps in a row
        self._norms: list[float] = []  # of the last good steps

    def jump(self, position: int) -> int:
        """The first position at or after `position` that no stretch holds."""
        for start, end in self.skip:
            if start <= position < end:
                position = end
        return position

    def look(self, position: int, batch_size: int, bad: bool) -> Stretch | None:
        """Told of the step at `position`. Gives the stretch to leave out once `max_bad` steps in a row were bad.

        Errors: a second stretch that begins where another ended is a UserError: the samples are not to blame.
        """
        if not bad:
            self.bad = 0
            return None
        self._from = position if self.bad == 0 else self._from
        self.bad, self.total = self.bad + 1, self.total + 1
        if self.bad < self.max_bad:
            return None
        stretch = (self._from, position + batch_size)
        if any(end == stretch[0] for _, end in self.skip):
            raise UserError(
                f"the gradient is not finite in {self.max_bad} steps in a row at position {stretch[0]}, right after a "
                "stretch that was left out: it is not the samples; lower training.learning_rate or set training.clip"
            )
        self.skip = sorted([*self.skip, stretch])
        self.bad = 0
        return stretch

    def spike(self, norm: float) -> float | None:
        """Told of a good step's gradient norm. Gives the usual one (the running median) if this one is a spike.

        Clipping has bounded the step already, so it only counts: a sign of a learning rate too high or of odd samples.
        """
        usual = statistics.median(self._norms) if len(self._norms) == WINDOW else math.inf
        self._norms = [*self._norms, norm][-WINDOW:]
        if norm <= SPIKE * usual:
            return None
        self.spikes += 1
        return usual

    def good_until(self, position: int) -> int:
        """The last position up to `position` that no bad step in the present row precedes."""
        return self._from if self.bad else position

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "skip": [list(stretch) for stretch in self.skip],
            "total": self.total,
            "bad": self.bad,
            "from": self._from,
            "spikes": self.spikes,
            "norms": self._norms,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint knows; stretches that are known already stay."""
        self.skip = sorted({*self.skip, *((int(a), int(b)) for a, b in state["skip"])})
        self.total = max(self.total, int(state["total"]))
        self.bad, self._from = int(state.get("bad", 0)), int(state.get("from", 0))
        self.spikes, self._norms = int(state.get("spikes", 0)), list(state.get("norms", []))


class Watchdog:
    """A thread that says where the caller hangs when `beat` was not called for `limit_s` seconds; it ends nothing.

    report: gets one line for each stall. The time limit of collectives (ranks.py) is what ends a hung run.
    """

    def __init__(self, limit_s: float, report: Callable[[str], None]) -> None:
        self.limit_s, self.report = limit_s, report
        self._thread_id = threading.get_ident()
        self._last, self._doing, self._reported = time.monotonic(), "starting", False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, doing: str) -> None:
        """Say that the caller lives, and what it does next."""
        self._last, self._doing, self._reported = time.monotonic(), doing, False

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self.limit_s / 4)):
            idle = time.monotonic() - self._last
            if idle < self.limit_s or self._reported:
                continue
            self._reported = True
            frame = sys._current_frames().get(self._thread_id)
            calls = traceback.extract_stack(frame)[-4:] if frame else []
            where = " <- ".join(f"{call.name} ({call.filename}:{call.lineno})" for call in reversed(calls))
            self.report(f"no step for {idle:.0f} s while {self._doing}; hangs in {where}")

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
