"""Shards that we write: of files and arrays, decoded once, filtered, cut to shape, stored as PNG in plain tars."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import filters, shards, sources, transforms
from pipeline.data.listing import Row
from pipeline.data.report import Statistics
from pipeline.data.shard_result import bucket_number, bucket_shape, finish, finished, sidecar_row
from pipeline.data.transforms import BadImage
from pipeline.errors import UserError
from pipeline.files import atomic_path, read_json
from pipeline.schema.data import Data

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Plan:
    """One shard to write."""

    name: str
    split: int
    rows: list[Row]


def write_shard(plan: Plan, data: Data, classes: list[str], folder: Path, work: Path) -> dict[str, Any]:
    """Write one shard (tar), its statistics (work/), then its sidecar: the sidecar proves the shard."""
    tar, result_file = folder / f"{plan.name}.tar", work / f"{plan.name}.json"
    if finished(plan.name, folder, result_file):
        return dict(read_json(result_file))
    number = {name: i for i, name in enumerate(classes)}
    read, statistics = sources.reader(data.source), Statistics(data.channels)
    rows: list[tuple[Any, ...]] = []
    with atomic_path(tar) as temporary, open(temporary, "wb") as file:
        writer = shards.TarWriter(file)
        for row in plan.rows:
            try:
                image, size = _load(read(row.location), row, data)
            except BadImage as error:
                statistics.bad(row.key, error)
                continue
            bucket = bucket_number(size, data)
            image = transforms.prepare(image, data, bucket_shape(bucket, data))
            label = number[row.label] if row.label is not None else -1
            member, meta = _add(writer, row, label, transforms.to_png(image))
            statistics.add(image, size, label, plan.split, bucket)
            rows.append(sidecar_row(row.key, member, meta, label, plan.split, bucket, data))
        writer.close()
    return finish(plan.name, tar.name, tar, rows, statistics, folder, result_file, data)


def _load(content: bytes | np.ndarray[Any, Any], row: Row, data: Data) -> tuple[Any, tuple[int, int]]:
    """A source's image, filtered, and its first size (width, height)."""
    if isinstance(content, bytes):
        if hashlib.sha256(content).hexdigest() != row.digest:
            raise UserError(f"{row.location} changed while ingest ran: run it again")
        extension = Path(str(row.location)).suffix[1:].lower()
        image = transforms.decode(content, data.channels, data.background, data.max_pixels, extension)
    else:
        image = transforms.from_array(content, data.channels, data.background)
    return filters.apply(image, data.filters), image.size


def _add(writer: shards.TarWriter, row: Row, label: int, png: bytes) -> tuple[shards.Member, shards.Member | None]:
    """A sample's members, as WebDataset names them: KEY.png, KEY.cls, KEY.json with caption and attributes."""
    name = shards.safe_key(row.key)
    member = writer.add(f"{name}.png", png)
    if label >= 0:
        writer.add(f"{name}.cls", str(label).encode())
    known = {**row.attributes, **({"caption": row.caption} if row.caption is not None else {})}
    meta = writer.add(f"{name}.json", json.dumps(known, sort_keys=True, ensure_ascii=False).encode()) if known else None
    return member, meta
