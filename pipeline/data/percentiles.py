"""Percentiles of the training split's values by band, and the map that follows from them (`values.json`).

Each shard's task counts its training images' values in 65,536 bins; counts are added, so that percentiles depend on no
order. Bins of whole numbers of 8 and 16 bits are the numbers: their percentiles are exact. Those of float32 are the
first 16 of its bits in order of value: a percentile is then right to 1/128 of itself (the precision of bfloat16).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.value_map import ValueMap
from pipeline.errors import UserError
from pipeline.files import atomic_path

if TYPE_CHECKING:
    from pipeline.schema.data import Data

Array = np.ndarray[Any, np.dtype[Any]]
BINS = 65536
SIGN = 1 << 31


def bins(values: Array) -> Array:
    """The bin of each value, int64: larger values have larger bins."""
    if values.dtype == np.float32:
        bits = values.view(np.uint32).astype(np.int64)
        return np.where(bits & SIGN, 2 * SIGN - 1 - bits, bits + SIGN) >> 16
    return values.astype(np.int64) + (BINS // 2 if values.dtype == np.int16 else 0)


def value_of(number: int, dtype: str) -> float:
    """The value of a bin that is nearest to 0."""
    if dtype == "float32":
        high = number << 16
        bits = high - SIGN if high >= SIGN else 2 * SIGN - 1 - (high + 0xFFFF)
        return float(np.uint32(bits).view(np.float32))
    return float(number - (BINS // 2 if dtype == "int16" else 0))


def counts(values: Array) -> Array:
    """How many of the values [C, n] of each band are in each bin: int64 [C, BINS]."""
    return np.stack([np.bincount(bins(np.ascontiguousarray(band)), minlength=BINS) for band in values])


def percentile(count: Array, percent: float, dtype: str) -> float:
    """The least value that so many percent of all are not above: `inverted_cdf` of numpy's methods. count: [BINS]."""
    ends = np.cumsum(count)
    return value_of(int(np.searchsorted(ends, max(1, np.ceil(percent / 100 * ends[-1])))), dtype)


def path_of(name: str, work: Path) -> Path:
    """Where a shard's task leaves its counts."""
    return work / f"{name}.counts.npy"


def save(path: Path, found: Array) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, found)


def value_map_of(data: Data, names: Iterable[str], work: Path) -> ValueMap:
    """The map that `data.values` asks for. names: of the shards, whose counts lie in `work` where it needs them.

    UserError for a band of the training split that has one value only.
    """
    assert data.values is not None
    pairs: Sequence[Sequence[float]] | None = data.values.pairs
    if pairs is None:
        ends, total = data.values.percentiles, np.zeros((data.channels, BINS), np.int64)
        assert ends is not None
        for path in (path_of(name, work) for name in names):
            total += np.load(path) if path.exists() else 0
        pairs = [[percentile(band, end, data.values.dtype) for end in ends] for band in total]
        for band, (low, high) in enumerate(pairs):
            if not low < high:
                raise UserError(
                    f"`data.values.percentiles`: band {band} is {low:g} at both, so that it has no range; give "
                    "percentiles further apart, or a `range`"
                )
    return ValueMap.of(data.values, data.channels, pairs)
