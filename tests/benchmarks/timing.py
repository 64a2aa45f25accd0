"""What all benchmarks share: clocks, interleaved rounds, figures. What is measured is in the other files here.

Variants take turns within a round, and each round begins with another one, so that a machine that slows down for a
while slows all of them. A figure is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table. target: what the figure must keep to, as "<= 1.05" or ">= 50"; empty: none is set."""

    what: str
    value: float
    unit: str = ""
    target: str = ""
    low: float | None = None  # quartiles over the rounds
    high: float | None = None

    @property
    def verdict(self) -> str:
        """ "met", "missed", or nothing where there is no target."""
        if not self.target:
            return ""
        relation, bound = self.target.split()
        met = self.value <= float(bound) if relation == "<=" else self.value >= float(bound)
        return "met" if met else "missed"


@dataclass(frozen=True)
class Seconds:
    """One variant's seconds, a number a round."""

    wall: list[float]
    cpu: list[float]  # of the process with its children: free of what other programs on the machine do

    def median(self, clock: str = "cpu") -> float:
        return float(statistics.median(getattr(self, clock)))


def cpu_seconds() -> float:
    """CPU seconds of this process, all its threads, and its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Stopwatch:
    """Adds up rounds of one variant: `start`, `stop`, and `seconds` at the end."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def start(self) -> None:
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def stop(self, per: float = 1.0) -> None:
        """End a round; what is kept is its time over `per`."""
        wall, cpu = time.perf_counter() - self._wall, cpu_seconds() - self._cpu
        self.wall.append(wall / per)
        self.cpu.append(cpu / per)

    def seconds(self, warm_up: int = 0) -> Seconds:
        return Seconds(self.wall[warm_up:], self.cpu[warm_up:])


def interleave(variants: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, Seconds]:
    """Seconds of each variant in `rounds` rounds, after `warm_up` that do not count.

    A variant does its work once and returns how many units it did (samples, steps, calls): times are per unit.
    """
    watches = {name: Stopwatch() for name in variants}
    names = list(variants)
    for number in range(warm_up + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            watches[name].start()
            watches[name].stop(variants[name]())
    return {name: watch.seconds(warm_up) for name, watch in watches.items()}


def ratio(
    what: str, over: Seconds, under: Seconds, target: str = "", clock: str = "cpu", unit: str = "times"
) -> Figure:
    """The median over rounds of over / under, with its quartiles."""
    pairs = zip(getattr(over, clock), getattr(under, clock), strict=True)
    return spread(what, [a / b for a, b in pairs], unit, target)


def spread(what: str, values: list[float], unit: str = "", target: str = "") -> Figure:
    """The median of a round's values, with its quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Figure(what, middle, unit, target, low, high)
