"""Map shards: the spatial conditions of an image shard's samples, as arrays that are read by slices of a memory map.

A safetensors file a shard in the pool of conditions, named by the pictures' bytes: of each condition `NAME` uint8
[n, K, h, w], and `NAME.told` uint8 [n], 0 where there is none. A picture is decoded once; one that cannot be is none,
and counted, as ingest does with images. What a map is, is in `maps.py`; where pictures lie, in `map_sources.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.data import maps
from pipeline.data.array_files import Array, save
from pipeline.data.latent_pool import entry_path, is_whole
from pipeline.data.transforms import BadImage
from pipeline.files import digest, read_json, sha256_file, write_json

FORMAT = 1  # of the files; raise it when their meaning changes


class Picture(NamedTuple):
    """A picture that a source has of a sample: how messages call it, its extension (no dot; None: any format), and its
    bytes, which may not be there (OSError)."""

    shown: str
    extension: str | None
    read: Callable[[], bytes]


def write(
    pool: Path,
    spatial: Mapping[str, maps.Options],
    pictures: Mapping[str, Sequence[Picture | None]],
    max_pixels: int,
) -> dict[str, Any]:
    """Put one shard's maps into the pool, unless they are there; returns its record.

    spatial: as `maps.py` has the options, by name; pictures: of each condition one a sample, None for none.
    Record: {file, bytes, sha256, count, told: samples that have one by name, bad: [name, picture, reason, detail]}.
    """
    found = {name: [_digest(picture) for picture in several] for name, several in pictures.items()}
    recipe = {name: [own["channels"], maps.sides(own), list(own["background"])] for name, own in spatial.items()}
    path = pool / f"{digest(['maps', FORMAT, recipe, max_pixels, found])[:32]}.safetensors"
    if is_whole(path):
        return dict(read_json(entry_path(path)))
    arrays: dict[str, Array] = {}
    bad: list[list[str]] = []
    count = max(map(len, pictures.values()))
    for name, own in spatial.items():
        arrays[name] = np.zeros((count, own["channels"], maps.sides(own), maps.sides(own)), np.uint8)
        arrays[f"{name}.told"] = np.zeros(count, np.uint8)
        for i, picture in enumerate(pictures[name]):
            if picture is None:
                continue
            try:
                arrays[name][i] = maps.read(_content(picture), own, max_pixels, picture.extension)
                arrays[f"{name}.told"][i] = 1
            except BadImage as error:
                bad.append([name, picture.shown, error.reason, error.detail])
    save(path, arrays)
    record = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "count": count,
        "told": {name: int(arrays[f"{name}.told"].sum()) for name in spatial},
        "bad": bad,
    }
    write_json(entry_path(path), record)
    return record


def _content(picture: Picture) -> bytes:
    try:
        return picture.read()
    except OSError as error:
        raise BadImage("missing", error.strerror or str(error)) from None


def _digest(picture: Picture | None) -> list[str | None] | None:
    """What identifies a picture: its bytes, and as what they are to be read; of one that is not there, only that."""
    if picture is None:
        return None
    try:
        return [hashlib.sha256(picture.read()).hexdigest(), picture.extension]
    except OSError:
        return [None, picture.shown]


def rows(
    arrays: Mapping[str, Array], spatial: Mapping[str, maps.Options], place: int, mirrored: bool
) -> dict[str, Array]:
    """The rows (`maps.row`) of one sample of a shard, from right to left where the image is mirrored."""
    found = {}
    for name, options in spatial.items():
        given = arrays[name][place] if arrays[f"{name}.told"][place] else None
        found[name] = maps.row(given[:, :, ::-1] if mirrored and given is not None else given, options)
    return found
