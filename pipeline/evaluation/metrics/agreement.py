"""Whether images show what was said of them: shares right by column, ranks of captions. Arrays in, figures out.

A figure says something only beside the same of real images (more is not to be had: the judge errs too) and of the same
images held against other rows (less is chance). Who answers is `evaluation/judges.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.metrics.classes import wilson

Array = np.ndarray[Any, np.dtype[Any]]
Options = Mapping[str, Any]  # of a column: kind, and its values or its range
AT = (1, 5, 10)  # of recall
TURNS = 20  # in which rows are moved on to hold images against others


def right(options: Options, answer: Array, told: Array) -> Array:
    """float64 [n]: 1 where the answer is what was told, 0 where not, NaN where nothing was told.

    answer: float [n, values], the largest is the value, of labels those above 0 are there; told: rows as of
    `data/condition_values.py`. All labels of a row have to be right.
    """
    if options["kind"] == "categorical":
        found = (answer.argmax(1) == told).astype(np.float64)
        return np.where(told < answer.shape[1], found, np.nan)
    found = ((answer > 0) == (told > 0.5)).all(1).astype(np.float64)
    return np.where(told[:, 0] >= 0, found, np.nan)


def shares(columns: Mapping[str, Options], answers: Mapping[str, Array], told: Mapping[str, Array]) -> dict[str, Any]:
    """By column {right, low, high, count}, with a 95% interval; `all` is the share of images with every one right, of
    those that were told every one. Of a continuous column {error, count}: the mean distance, in the column's unit.
    A column of which nothing was told is left out.
    """
    found: dict[str, Any] = {}
    marks = []
    for name, options in columns.items():
        if options["kind"] == "continuous":
            known = told[name] >= 0
            if known.any():
                low, high = options["range"]
                distance = np.abs(answers[name][known, 0] - told[name][known]).mean()
                found[name] = {"error": float(distance) * (high - low), "count": int(known.sum())}
            continue
        marks.append(right(options, answers[name], told[name]))
        found |= _share(name, marks[-1])
    if len(marks) > 1:
        found |= _share("all", np.prod(marks, axis=0))  # NaN where one is not known
    return found


def _share(name: str, marks: Array) -> dict[str, Any]:
    known = marks[~np.isnan(marks)]
    if not len(known):
        return {}
    low, high = wilson(int(known.sum()), len(known))
    return {name: {"right": float(known.mean()), "low": low, "high": high, "count": len(known)}}


def shuffled(columns: Mapping[str, Options], answers: Mapping[str, Array], told: Mapping[str, Array]) -> dict[str, Any]:
    """`shares` of the same answers against other images' rows: a mean over rows moved on by 1 to 20 places. The images
    have to be in random order."""
    count = len(next(iter(answers.values())))
    turned = [
        shares(columns, answers, {name: np.roll(rows, turn, 0) for name, rows in told.items()})
        for turn in range(1, min(TURNS, count - 1) + 1)
    ]
    found = {}
    for name in turned[0] if turned else ():
        figure = "error" if "error" in turned[0][name] else "right"
        found[name] = {figure: float(np.mean([one[name][figure] for one in turned if name in one]))}
    return found


def ranks(scores: Array, own: Array) -> Array:
    """The rank int64 [n], from 1, of candidate `own` [n] by its score among all, float [n, m]. Of equal ones it is the
    last: who answers the same to everything has found nothing."""
    mine = np.take_along_axis(scores, own[:, None], 1)
    found: Array = (scores >= mine).sum(1)
    return found


def recall(rank: Array, candidates: int) -> dict[str, float]:
    """{recall_1, recall_5, recall_10, median_rank}: the share of images whose caption is among the first so many; as
    far as there are more candidates than that."""
    found = {f"recall_{k}": float((rank <= k).mean()) for k in AT if k < candidates}
    return {**found, "median_rank": float(np.median(rank))}


def recall_shuffled(scores: Array, own: Array) -> dict[str, float]:
    """`recall` of the same images for other images' captions, a mean over rows moved on by 1 to 20 places."""
    turned = [
        recall(ranks(scores, np.roll(own, turn)), scores.shape[1]) for turn in range(1, min(TURNS, len(own) - 1) + 1)
    ]
    return {name: float(np.mean([one[name] for one in turned])) for name in (turned[0] if turned else ())}


def recall_chance(candidates: int) -> dict[str, float]:
    """`recall` of ranks that are drawn, in closed form."""
    return {f"recall_{k}": k / candidates for k in AT if k < candidates} | {"median_rank": (candidates + 1) / 2}


def distinct(texts: Sequence[str]) -> tuple[list[str], Array]:
    """The different texts in order of first appearance, and which of them each is, int64 [n]."""
    places: dict[str, int] = {}
    own = [places.setdefault(text, len(places)) for text in texts]
    return list(places), np.array(own, np.int64)
