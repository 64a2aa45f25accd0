"""What the elements of a sweep leave for each other, and which of two figures of theirs is better.

<root>/sweeps/<name>-<key>/
    sweep.json              the sweep, as it was read
    points/NUMBER.json      with a searcher: the values it chose, in order
    elements/NUMBER/
        place.json          where its stages' artifacts lie (written when it begins)
        rungs/, pruned.json decisions of the rule of `prune`
        result.json         how it ended: finished, pruned or failed; failed ones are tried again
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import read_json
from pipeline.past import history
from pipeline.past.compare import better
from pipeline.schema.sweep import Sweep
from pipeline.tracking.links import moved

STAGE = {"autoencoder": "autoencoder", "diffusion": "diffusion", "eval": "evaluate"}  # of a metric's prefix


@dataclass(frozen=True)
class Folder:
    """What a sweep's elements leave for each other. Numbers are of elements."""

    path: Path

    def element(self, number: int) -> Path:
        return self.path / "elements" / f"{number:06d}"

    def begun(self) -> list[int]:
        """Elements that have begun."""
        return sorted(int(place.parent.name) for place in self.path.glob("elements/*/place.json"))

    def result(self, number: int) -> dict[str, Any] | None:
        """How an element ended; None if it has not."""
        path = self.element(number) / "result.json"
        return dict(read_json(path)) if path.exists() else None

    def place(self, number: int) -> dict[str, Any]:
        """Where the artifacts of an element that has begun lie (`begin`)."""
        return dict(read_json(self.element(number) / "place.json"))

    def curve(self, number: int, metric: str) -> list[tuple[int, float]]:
        """(samples seen, value) of an element's curve so far; of a figure of `eval/`: at 0."""
        place = self.place(number)
        stage = STAGE[metric.partition("/")[0]]
        points: dict[int, float] = {}
        for event in history.events(
            sorted((moved(self.path.parents[1], place["folders"][stage]) / "work" / "spool").glob("*.jsonl"))
        ):
            if event["kind"] == "metrics" and isinstance(event["values"].get(metric), float):
                points[event["step"] * place["batch"].get(stage, 1)] = event["values"][metric]
        return sorted(points.items())


def sign(sweep: Sweep, metric: str) -> int:
    """1 if more of a metric is better, -1 if less is, 0 if that is not known. `direction` is of the sweep's metric."""
    given = {"max": 1, "min": -1}.get(sweep.direction, 0) if metric == sweep.metric else 0
    return given or better(metric)


def repeats(sweep: Sweep) -> list[dict[str, Any]]:
    """What each point is run with: the folds times the seeds, as overrides."""
    folds: list[dict[str, Any]] = [{}]
    if sweep.folds:
        split = {"by": "fold", "column": sweep.folds.column, "folds": sweep.folds.k}
        folds = [{"data.split": {**split, "fold": fold}} for fold in range(sweep.folds.k)]
    seeds: list[dict[str, Any]] = [{"run.seed": seed} for seed in sweep.seeds] or [{}]
    return [fold | seed for fold, seed in itertools.product(folds, seeds)]
