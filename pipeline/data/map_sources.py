"""Where the pictures of spatial conditions lie: beside the images in tars, or named by a column of a table.

The stage `conditions` reads them from the source, as maps (`map_shards.py`); no copy of the pictures is kept. Those
inside of the source's own files (tars, Parquet) are part of the source's fingerprint, others are digested here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data import parquet, shards, sources, tables, transforms
from pipeline.data.listing import Digests, plain
from pipeline.data.map_shards import Picture
from pipeline.data.parquet_files import PLACE
from pipeline.data.parquet_files import reader as parquet_reader
from pipeline.errors import UserError
from pipeline.files import digest

if TYPE_CHECKING:
    from pipeline.data.index import Index
    from pipeline.schema.data import Data


def located(data: Data, column: str) -> dict[str, str]:
    """Of each image of a table that has a picture in `column`, by its key: the picture's path, or its place in a
    Parquet file. Empty for tars, where pictures lie beside the images."""
    source = data.source
    if source.kind != "table":
        return {}
    found = parquet.located(source, column) if parquet.is_parquet(source.path) else tables.located(source, column)
    if data.limit is None:
        return found
    chosen = {row.key for row in sources.chosen(data).rows}
    return {key: location for key, location in found.items() if key in chosen}


def content(data: Data, column: str, digests_folder: str | Path) -> str | None:
    """What decides on the pictures of a column besides the source's own files: the digest of their bytes by key; None
    where there are no others."""
    outside = {key: path for key, path in located(data, column).items() if PLACE.fullmatch(path) is None}
    if not outside:
        return None
    name = os.fsencode(Path(str(getattr(data.source, "path", ""))).absolute()) + b"\0" + column.encode()
    digests = Digests(Path(digests_folder) / f"digests-{hashlib.sha256(name).hexdigest()[:16]}.json")
    known = [[key, digests.of(path) if Path(path).is_file() else None] for key, path in sorted(outside.items())]
    digests.save()
    return digest(known)


def of_table(column: str, locations: Sequence[str | None]) -> list[Picture | None]:
    """The pictures at these locations, as `located` gives them."""
    inside = parquet_reader(column)

    def picture(location: str) -> Picture:
        if PLACE.fullmatch(location):
            return Picture(location, None, partial(inside, location))
        path = Path(location)
        return Picture(plain(location), path.suffix[1:].lower(), path.read_bytes)

    return [picture(location) if location else None for location in locations]


def of_tar(index: Index, shard: int, columns: Mapping[str, str]) -> dict[str, list[Picture | None]]:
    """By condition, of each sample of a tar the member KEY.COLUMN.png (or of another type of images). columns: of each
    condition its column. UserError where that is the sample's own image."""
    path, shown = index.tar(shard)
    members: dict[str, dict[str, shards.Member]] = {}
    for key, found in shards.samples(shards.scan(path, shown)):
        members.setdefault(plain(key), found)
    pictures: dict[str, list[Picture | None]] = {}
    for name, column in columns.items():
        endings = [f"{column.lower()}.{extension}" for extension in transforms.FORMATS]
        pictures[name] = []
        for i in index.samples_of(shard):
            there = members.get(index.key(i), {})
            member = next((there[ending] for ending in endings if ending in there), None)
            if member is not None and member.offset == index.place(i)[0]:
                raise UserError(
                    f"shard {shown}: {plain(member.name)} is the first picture of its sample, so that it was taken for "
                    f"the image, and cannot be the condition {name!r}; say which is: `data.source.image`, such as png"
                )
            pictures[name].append(member and _member(path, member))
    return pictures


def _member(path: Path, member: shards.Member) -> Picture:
    def read() -> bytes:
        with open(path, "rb") as file:
            file.seek(member.offset)
            return file.read(member.length)

    return Picture(f"{path.name}: {plain(member.name)}", member.name.rpartition(".")[2].lower(), read)
