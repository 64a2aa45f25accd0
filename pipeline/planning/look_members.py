"""A look at members of tars: which arrays (.npy) are images, of how many bands and which type, what classes are called
and what is told of images."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data import array_members, index_tars, tars
from pipeline.data.raster_files import Array
from pipeline.data.transforms import BadImage
from pipeline.errors import UserError
from pipeline.planning import look_rasters
from pipeline.schema.data import WebDatasetSource
from pipeline.schema.values import MOST_CHANNELS


def arrays_in(path: Path) -> str | None:
    """What follows the key's dot in the names of .npy members that most samples of a tar have in place of an image: npy
    or, to be named by `source.image`, another. None where there are none."""
    samples = list(index_tars.samples_of(path, str(path)))
    names = Counter(
        name for _, members, image in samples if image is None for name in members if name.split(".")[-1] == "npy"
    )
    most = max(names, key=lambda name: (names[name], name == array_members.MEMBER), default=None)
    return most if most and 2 * names[most] > len(samples) else None


def measured(contents: Sequence[bytes], name: str, source: dict[str, Any], problems: Counter[str]) -> dict[str, Any]:
    """The fields of `look.Found` for members of that name, of which some were read; problems: those met before.
    UserError where none can be used."""
    bands = [found for found in map(_bands, contents) if found]
    channels = max(set(bands), key=bands.count) if bands else 1
    data = look_rasters.data_of({"kind": "webdataset", "path": source["path"]}, channels)
    arrays: list[Array] = []
    for content in contents:
        try:
            arrays.append(array_members.values_of(content, data))
        except BadImage as error:
            problems = problems + Counter([error.reason])
    if not arrays:
        raise UserError(f"{source['path']}: no image of {len(contents)} can be read ({'; '.join(sorted(problems))})")
    values, notes = look_rasters.values_of(arrays)
    return {
        "source": source if name == array_members.MEMBER else {**source, "image": name},
        "sizes": [(array.shape[2], array.shape[1]) for array in arrays],
        "gray": float(channels == 1),
        "problems": problems,
        "notes": notes,
        "channels": channels,
        "values": values,
    }


def _bands(content: bytes) -> int | None:
    """Bands of an array [h, w], or with its bands first or last, by its header: the shorter of both ends."""
    with contextlib.suppress(BadImage):
        shape = array_members.header(io.BytesIO(content))[0]
        if len(shape) == 2 or (len(shape) == 3 and min(shape[0], shape[2]) <= MOST_CHANNELS):
            return 1 if len(shape) == 2 else min(shape[0], shape[2])
    return None


def class_names(folder: Path) -> list[str] | None:
    """What `classes.json` in a folder of tars calls the classes."""
    return tars.tar_classes(WebDatasetSource(kind="webdataset", path=str(folder / "*.tar")))


def meta_of(file: Any, members: Mapping[str, Any]) -> dict[str, Any]:
    """The caption and other columns of a tar's sample, as ingest would take them; nothing where they cannot be read."""
    member = members.get("json") or members.get("txt")
    if member is None:
        return {}
    file.seek(member.offset)
    content = file.read(member.length)
    if "json" not in members:
        return {"caption": content.decode("utf-8", "replace")}
    with contextlib.suppress(ValueError):  # ingest says where it is
        if isinstance(known := json.loads(content), dict):
            return known
    return {}
