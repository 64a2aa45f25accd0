"""Which images of a listing are kept, in which split, and which classes are left without a training image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.data.generated import marked
from pipeline.data.held_out import folds, group_of, split_of
from pipeline.data.listing import Listing, Row
from pipeline.data.report import unusable
from pipeline.schema.data import Data

SHOWN = 5  # classes that a line names


@dataclass(frozen=True)
class Assigned:
    """rows: training and held-out ones, each with its place in the listing. quarantine: what is not kept, and why."""

    rows: tuple[list[tuple[int, Row]], list[tuple[int, Row]]]
    quarantine: list[dict[str, str]]


def assign(data: Data, listing: Listing) -> Assigned:
    """Leave out what is missing, named twice or the same file twice, and split the rest. Reads no image."""
    quarantine = [unusable(name, "missing", "named in the table, no such file") for name in listing.missing]
    quarantine += listing.bad
    keys: set[str] = set()
    first: dict[str, str] = {}
    kept: list[tuple[int, Row, dict[str, Any]]] = []
    for place, row in enumerate(listing.rows):
        if row.key in keys:
            quarantine.append(unusable(row.key, "duplicate key", f"{row.location} has the key of an earlier image"))
        elif row.digest in first:
            quarantine.append(unusable(row.key, "duplicate", f"the same bytes as {first[row.digest]}"))
        else:
            first[row.digest] = row.key
            columns = {**row.attributes, "label": row.label, "caption": row.caption}
            label, caption = getattr(data.source, "label", None), getattr(data.source, "caption", None)
            columns |= {name: value for name, value in ((label, row.label), (caption, row.caption)) if name}
            kept.append((place, row, columns))
        keys.add(row.key)
    by_fold = data.split.by == "fold"
    real = [(row.key, columns) for _, row, columns in kept if not marked(columns)]
    groups = Counter(group_of(data, key, columns) for key, columns in real) if by_fold else Counter()
    fold_of = folds(groups, data.split.folds or 0) if by_fold else {}
    split: tuple[list[tuple[int, Row]], list[tuple[int, Row]]] = ([], [])
    for place, row, columns in kept:
        split[split_of(data, row.together or row.key, columns, fold_of)].append((place, row))
    return Assigned(split, quarantine)


def untrained(train: Mapping[str, int], held_out: Mapping[str, int]) -> str | None:
    """Which classes have held-out images only, in words; images by class. None if there are none."""
    alone = [name for name, count in held_out.items() if count and not train.get(name) and name != "(none)"]
    if not alone:
        return None
    shown = ", ".join(f"{name!r} ({held_out[name]} held out)" for name in alone[:SHOWN])
    more = f" and {len(alone) - SHOWN} more" if len(alone) > SHOWN else ""
    which, them = ("1 class has", "it") if len(alone) == 1 else (f"{len(alone)} classes have", "them")
    return (
        f"{which} no training image, and no model can learn {them}: {shown}{more}; give more images, or take them out"
    )
