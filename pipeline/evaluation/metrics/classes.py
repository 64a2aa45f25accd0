"""Samples by class: how many are of the class that was asked for, beside the same of real images, a row a class."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.metrics import kernel

Array = np.ndarray[Any, np.dtype[Any]]
LEAST = 20  # images of a class below which its kernel distance is left out
COLUMNS = ("class", "asked", "right", "low", "high", "real", "taken_for", "kernel_distance", "kernel_images")


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson, 1927): not empty at 0 and 1, as that of the normal distribution is."""
    share, z2 = right / count, kernel.Z**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = kernel.Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def table(
    names: Sequence[str],
    asked: Array,
    given: Array,
    features: Array,
    held_out_labels: Array,
    held_out_given: Array,
    held_out_features: Array,
) -> list[dict[str, Any]]:
    """A row for each class that was asked for.

    asked, given: class int64 [n] asked for, and class that the classifier sees; the same of held-out images [m], whose
    labels are -1 where there is none. right: share, with interval low to high. real: the classifier's share on held-out
    images of the class: more is not to be had. taken_for: the class that wrong samples are most often taken for.
    kernel_distance: of the class's samples to its held-out images, equally many; None where there are too few.
    """
    rows = []
    for number in np.unique(asked):
        mine, real = asked == number, held_out_labels == number
        right = int((given[mine] == number).sum())
        wrong, counts = np.unique(given[mine & (given != number)], return_counts=True)
        low, high = wilson(right, int(mine.sum()))
        both = min(int(mine.sum()), int(real.sum()))
        near = None
        if both >= LEAST:
            near = kernel.distance(features[mine][:both], held_out_features[real][:both])
        rows.append(
            {
                "class": names[number],
                "asked": int(mine.sum()),
                "right": right / int(mine.sum()),
                "low": low,
                "high": high,
                "real": float((held_out_given[real] == number).mean()) if real.any() else None,
                "taken_for": names[wrong[counts.argmax()]] if len(wrong) else None,
                "kernel_distance": near,
                "kernel_images": both if near is not None else None,
            }
        )
    return rows


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The table as CSV, which MLflow shows as a table: numbers in four digits, empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(
            f"{row[key]:.4g}" if isinstance(row[key], float) else "" if row[key] is None else row[key]
            for key in COLUMNS
        )
    return text.getvalue()
