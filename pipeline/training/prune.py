"""Stopping hopeless elements of a sweep: the rule over validation curves, and the log that applies it in a rank.

A decision is a function of curves in samples seen; each is made once, at a rung, and kept, with what it stood on. So a
process that goes on after a kill does not decide again. Stopping is a stop request: training saves first, and goes on
from there if asked (`ldm sweep --no-prune`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import read_json, write_json
from pipeline.schema.sweep import Prune, Sweep

if TYPE_CHECKING:
    import numpy as np

    from pipeline.config import Element
    from pipeline.tracking.tracker import Spool

Curve = Sequence[tuple[int, float]]  # (samples seen, value), samples ascending


def rungs(rule: Prune) -> Iterator[int]:
    """Where the rule looks, in samples seen, ascending, without end."""
    for n in count():
        yield (
            rule.first + n * (rule.every or rule.first) if rule.kind == "median" else round(rule.first * rule.factor**n)
        )


def rung_of(rule: Prune, samples: int) -> int | None:
    """The last rung that lies at or before `samples`; None before the first."""
    return max(takewhile(lambda rung: rung <= samples, rungs(rule)), default=None)


def value_at(curve: Curve, rung: int, samples: int) -> float | None:
    """What a curve says at a rung to one that is judged at `samples`: its last value between the two, ends included.

    None if it has none: it did not come so far, or was validated or began later only, when it knew more.
    """
    return next((value for at, value in reversed(curve) if rung <= at <= samples), None)


def hopeless(rule: Prune, own: float, others: Sequence[float], sign: int) -> str | None:
    """Why an element of value `own` at a rung is stopped, or None. others: values of the other elements there.

    sign: 1 if more is better, -1 if less is. An equal value is not worse.
    median: stopped if worse than the median of at least `least` others.
    halving: of n elements that reached the rung, with this one, the best max(1, floor(n / factor)) pass.
    """
    if rule.kind == "median":
        if len(others) < rule.least:
            return None
        middle = statistics.median(others)
        return f"worse than the median {middle:.6g} of {len(others)} others" if sign * own < sign * middle else None
    n = len(others) + 1
    if n < rule.least:
        return None
    passing = max(1, math.floor(n / rule.factor))
    place = 1 + sum(sign * other > sign * own for other in others)
    return f"place {place} of {n}, of which {passing} pass" if place > passing else None


class Judge:
    """Rank 0's log in an element of a sweep with pruning: passes everything on, and looks at the curve as it grows.

    `stopped` is true from the decision on; `stop` in `mail` tells the driver.
    """

    def __init__(self, log: Spool, element: Element, mail: Path, batch: int, steps: int) -> None:
        from pipeline.past.sweep_folder import Folder

        self.log, self.mail, self.batch, self.steps = log, mail, batch, steps
        self.folder, self.number = Folder(Path(element.folder)), element.number
        sweep = Sweep.model_validate(read_json(self.folder.path / "sweep.json"))
        assert sweep.prune is not None
        self.rule, self.sweep, self.stopped = sweep.prune, sweep, False

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Log; then judge, if the curve that the rule looks at has a new point."""
        self.log.metrics(values, step)
        if self.rule.metric in values and step < self.steps:
            self._judge(values[self.rule.metric], step * self.batch)

    def image(self, key: str, image: np.ndarray[Any, Any], step: int, cells: Sequence[str] = ()) -> None:
        """Log."""
        self.log.image(key, image, step, cells)

    def file(self, path: str | Path, artifact_path: str = "") -> None:
        """To the spool."""
        self.log.file(path, artifact_path)

    def _judge(self, value: float, samples: int) -> None:
        from pipeline.past.sweep_folder import sign

        rung = rung_of(self.rule, samples)
        if rung is None:
            return
        record = self.folder.element(self.number) / "rungs" / f"{rung:012d}.json"
        if record.exists():
            if read_json(record)["why"] is None:
                return  # decided before, perhaps by this run before it was killed
        else:
            others = self.others(rung, samples)
            why = hopeless(self.rule, value, list(others.values()), sign(self.sweep, self.rule.metric))
            write_json(record, {"rung": rung, "samples": samples, "value": value, "others": others, "why": why})
        decision = read_json(record)
        if decision["why"] is None:
            return
        self.stopped = True
        self.log.tags({"ldm.pruned": f"at {samples} samples: {decision['why']}"})
        write_json(self.folder.element(self.number) / "pruned.json", decision)
        (self.mail / "stop").touch()

    def others(self, rung: int, samples: int) -> Mapping[str, float]:
        """Value at the rung of each other element of the same fold and seed that came so far, by number."""
        from pipeline.past.sweep_folder import repeats

        per_point, found = len(repeats(self.sweep)), {}
        for number in self.folder.begun():
            if number != self.number and number % per_point == self.number % per_point:
                value = value_at(self.folder.curve(number, self.rule.metric), rung, samples)
                if value is not None:
                    found[str(number)] = value
        return found
