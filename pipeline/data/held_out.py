"""Which images are held out: by key, by the value of a column, by fold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pipeline.data.generated import marked
from pipeline.data.own_split import split_number
from pipeline.data.report import TRAIN, VAL
from pipeline.errors import UserError
from pipeline.schema.data import Data


def held_out(value: str, fraction: float) -> bool:
    """Whether a key, or a group's name, is for validation: its SHA-256 falls into the first `fraction` of all."""
    hashed = hashlib.sha256(value.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(hashed[:8], "big") < fraction * 2**64


def folds(groups: Mapping[str, int], count: int) -> dict[str, int]:
    """The fold of each group, none empty: the largest group first, each into the smallest fold so far.

    groups: images of each. So no two folds differ by more images than the largest group has. Which groups come
    together is decided by their names' SHA-256 where sizes are equal. Raises UserError for fewer groups than folds.
    """
    if len(groups) < count:
        raise UserError(
            f"data.split: {count} folds of {len(groups)} groups ({', '.join(sorted(groups)[:5]) or 'none'}); give at "
            "most as many `folds` as the column has values"
        )

    def order(name: str) -> tuple[int, bytes]:
        return -groups[name], hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()

    filled, found = [0] * count, {}
    for name in sorted(groups, key=order):
        found[name] = min(range(count), key=lambda fold: (filled[fold], fold))
        filled[found[name]] += groups[name]
    return found


def group_of(data: Data, key: str, known: dict[str, Any]) -> str:
    """The value of the column that rows are kept together by."""
    column = str(data.split.column)
    if column not in known:
        raise UserError(f"data.split.column: {key} has no {column!r}; there are {', '.join(known) or 'no columns'}")
    return str(known[column])


def split_of(data: Data, key: str, known: dict[str, Any], fold_of: Mapping[str, int]) -> int:
    """fold_of: the fold of each group, with `by: fold`. What a model made is for training, whatever decides."""
    if marked(known):
        return TRAIN
    if data.split.by == "source":
        return split_number(known, key)
    if data.split.by == "fold":
        return VAL if fold_of[group_of(data, key, known)] == data.split.fold else TRAIN
    if data.split.by == "column":
        key = group_of(data, key, known)
    return VAL if held_out(key, data.split.val_fraction) else TRAIN
