"""`data.split.by: source`: the split that a source has itself, by the column or attribute `split` of its rows; what a
model made is for training whatever it says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from pipeline.data.array_names import SPLITS
from pipeline.data.generated import marked
from pipeline.data.listing import Listing
from pipeline.data.report import TRAIN, VAL
from pipeline.errors import UserError, many

COLUMN = "split"


def own_split(found: Listing) -> Listing:
    """The rows of training and validation; those for tests are left out, or held out where there are no others.

    Raises UserError for a row whose split is not known, and where either is empty.
    """
    splits = ["train" if marked(row.attributes) else _name(row.attributes.get(COLUMN), row.key) for row in found.rows]
    counts = Counter(splits)
    held_out = "val" if counts["val"] else "test"
    if not counts["train"] or not counts[held_out]:
        there = ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items()))
        raise UserError(
            f"`data.split.by` is source, but the images are not split into train and val ({there}); use by: key"
        )
    rows = [row for row, split in zip(found.rows, splits, strict=True) if split in ("train", held_out)]
    notes = [f"{many(counts['test'], 'image')} for tests left out"] if held_out == "val" and counts["test"] else []
    return replace(found, rows=rows, notes=[*found.notes, *notes])


def split_number(known: dict[str, object], key: str) -> int:
    """TRAIN or VAL of a row by its attributes."""
    return TRAIN if _name(known.get(COLUMN), key) == "train" else VAL


def _name(value: object, key: str) -> str:
    name = SPLITS.get(str(value).strip().lower())
    if name is None:
        said = "has no split of its own" if value is None else f"is of split {value!r}"
        raise UserError(
            f"`data.split.by` is source, but {key} {said}; a column (or file and array names) says train, val or test: "
            "correct it, or use by: key"
        )
    return name
