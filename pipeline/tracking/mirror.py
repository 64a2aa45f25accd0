"""Which points of a stage's curves the parent run repeats: spread evenly, at most a limit, always the same ones.

Pure functions over spool lines and a small state, so that a replay chooses the points it chose before. A tracker cannot
take a point back, so the choice is made as points come.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

BUCKETS = {"metrics": 480, "image": 16}  # the even spread
LIMIT = {"metrics": 500, "image": 20}  # the most points of a key, with the last points of runs that went on


@dataclass(frozen=True)
class Point:
    """One value (a number, its name if not finite, or an image's path) of a key at a step."""

    kind: str
    key: str
    step: int
    value: Any
    ts_ms: int


def bucket(kind: str, step: int, ordinal: int, steps: int | None) -> int:
    """The stretch of the run that a point lies in; one point of each is chosen.

    With a known last step: equal stretches of steps. Without: a / tenth of the buckets for each doubling of the number
    of points, which fills them at 50 thousand points.
    """
    if steps:
        return step * BUCKETS[kind] // steps
    tenth = BUCKETS[kind] / 10
    return int(tenth * math.log2(1 + ordinal / tenth))


def points(event: dict[str, Any]) -> list[Point]:
    """The points of a spool line."""
    kind, step, ts_ms = event["kind"], event["step"], event["ts_ms"]
    if kind == "image":
        return [Point(kind, event["key"], step, event["path"], ts_ms)]
    return [Point(kind, key, step, value, ts_ms) for key, value in event["values"].items()]


def thin(state: dict[str, Any], event: dict[str, Any], steps: int | None) -> list[Point]:
    """Those points of a line that the mirror takes. `state` (of one run in one parent) is brought up to date."""
    chosen = []
    for point in points(event):
        seen = state.setdefault(f"{point.kind}:{point.key}", {"bucket": -1, "seen": 0, "sent": 0, "last": None})
        place = bucket(point.kind, point.step, seen["seen"], steps)
        seen["seen"] += 1
        if place > seen["bucket"] and seen["sent"] < LIMIT[point.kind] - 1:  # one is kept for the last point
            seen.update(bucket=place, sent=seen["sent"] + 1, last=None)
            chosen.append(point)
        else:
            seen["last"] = [point.step, point.value, point.ts_ms]
    return chosen


def thin_last(state: dict[str, Any]) -> list[Point]:
    """At the end of a run: the last point of each key where it was not taken yet, so that curves end where they end."""
    chosen = []
    for name, seen in state.items():
        kind, _, key = name.partition(":")
        if seen["last"] is not None and seen["sent"] < LIMIT[kind]:
            chosen.append(Point(kind, key, *seen["last"]))
            seen.update(sent=seen["sent"] + 1, last=None)
    return chosen


def copy_curves(events: Iterable[dict[str, Any]]) -> tuple[list[Point], dict[str, Any]]:
    """The whole mirror of a run from all its lines, and the state at their end."""
    state: dict[str, Any] = {}
    chosen: list[Point] = []
    steps = None
    for event in events:
        if event["kind"] == "start":
            steps = event["steps"]
        elif event["kind"] in ("metrics", "image"):
            chosen += thin(state, event, steps)
        elif event["kind"] == "end":
            chosen += thin_last(state)
    return chosen, state
