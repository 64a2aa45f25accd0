"""What the task of one shard leaves: the sidecar that proves it, and its statistics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data import percentiles, shards, twins
from pipeline.data.buckets import bucket_of
from pipeline.data.index import write_rows
from pipeline.data.listing import LeftOut
from pipeline.data.report import TRAIN, VAL, Statistics
from pipeline.files import sha256_file, write_json
from pipeline.schema.data import Data, Shape


def sidecar_row(
    key: str, image: shards.Member, meta: shards.Member | None, label: int, split: int, bucket: int, data: Data
) -> tuple[Any, ...]:
    """A row of a sidecar, as `index.row_type` has it."""
    meta_place = (meta.offset, meta.length) if meta else (0, 0)
    place = (bucket,) if data.buckets else ()
    return image.offset, image.length, label, split, *meta_place, *place, key.encode()


def finished(name: str, folder: Path, result_file: Path) -> bool:
    pixels = twins.path_of(name, result_file.parent)
    return (folder / f"{name}.rows.npy").exists() and result_file.exists() and pixels.exists()


def finish(
    name: str,
    location: str,
    tar: Path,
    rows: list[tuple[Any, ...]],
    statistics: Statistics,
    folder: Path,
    result_file: Path,
    data: Data,
    repeats: Mapping[int, str],
    left_out: LeftOut | None = None,
) -> dict[str, Any]:
    """Write the task's result, then the sidecar, which proves the shard; the result is what the task returns.

    repeats: as in the shard's plan, so that a restart knows which of its images were left out.
    """
    sidecar = folder / f"{name}.rows.npy"
    part = result_file.with_suffix(".rows.npy")
    write_rows(part, rows, bucketed=data.buckets is not None)
    numbers = range(len(data.shapes))
    by_bucket = {"train": TRAIN, "val": VAL}
    buckets = {name: [statistics.buckets[split][b] for b in numbers] for name, split in by_bucket.items()}
    result = {
        "shard": {
            "name": name,
            "location": location,
            "sha256": sha256_file(tar),
            "bytes": tar.stat().st_size,
            "rows_sha256": sha256_file(part),
            "train": statistics.counts[TRAIN],
            "val": statistics.counts[VAL],
            **({"buckets": buckets} if data.buckets else {}),
            **({"generated": statistics.generated} if statistics.generated else {}),
        },
        "train": statistics.counts[TRAIN],
        "val": statistics.counts[VAL],
        "quarantine": statistics.quarantine,
        "labels": [{str(k): v for k, v in counter.items()} for counter in statistics.labels],
        "sizes": dict(statistics.sizes),
        "pixels": statistics.pixels,
        "sums": statistics.sums,
        "squares": statistics.squares,
        "repeats": sorted([place, key] for place, key in repeats.items()),
        "left_out": left_out.json() if left_out else {},
    }
    if statistics.counts_of_values is not None:
        percentiles.save(percentiles.path_of(name, result_file.parent), statistics.counts_of_values)
    else:  # a shard whose images all repeat others' has them from the time before that was known
        percentiles.path_of(name, result_file.parent).unlink(missing_ok=True)
    write_json(result_file, result)
    part.replace(sidecar)
    return result


def bucket_number(size: tuple[int, int], data: Data) -> int:
    """The bucket of an image of this width and height; 0 where there is no choice."""
    return bucket_of(size[1], size[0], data.shapes)


def bucket_shape(bucket: int, data: Data) -> Shape | None:
    return None if data.buckets is None else data.shapes[bucket]
