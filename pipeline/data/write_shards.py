"""Shards that we write: of files and arrays, decoded once, filtered, cut to shape, stored in plain tars: as PNG, or as
.npy where values are not 8 bits of gray or RGB; of clips, as strips of frames; of passages of text, and of sounds, as
they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import clips, filters, rasters, shards, sounds, sources, transforms, twins
from pipeline.data.generated import marked
from pipeline.data.listing import LeftOut, Row, plain
from pipeline.data.look_through import WORDS, animated
from pipeline.data.raster_files import WITHOUT_DATA
from pipeline.data.report import Statistics
from pipeline.data.shard_result import bucket_number, bucket_shape, finish, finished, sidecar_row
from pipeline.data.transforms import BadImage, Bands
from pipeline.data.waves import Heard
from pipeline.errors import UserError
from pipeline.files import atomic_path, read_json
from pipeline.schema.data import Data

if TYPE_CHECKING:
    pass


NO_FAULT = {  # of the source: such samples are left out, and are no reason to stop
    WITHOUT_DATA: "tiles with places without data",  # the border of a scene
    sounds.SILENCE: sounds.SILENCE,  # in a longer file
}


@dataclass(frozen=True)
class Plan:
    """One shard to write. places: of its rows in the listing. repeats: rows that have the pixels of an earlier image,
    and that one's key."""

    name: str
    split: int
    rows: list[Row]
    places: Sequence[int] = ()
    repeats: Mapping[int, str] = field(default_factory=dict)


def write_shard(plan: Plan, data: Data, classes: list[str], folder: Path, work: Path) -> dict[str, Any]:
    """Write one shard (tar), its statistics (work/), then its sidecar: the sidecar proves the shard."""
    tar, result_file = folder / f"{plan.name}.tar", work / f"{plan.name}.json"
    if finished(plan.name, folder, result_file):
        return dict(read_json(result_file))
    number = {name: i for i, name in enumerate(classes)}
    read = _reader(data)
    statistics, left_out = Statistics(data.channels, counted=bool(data.values and data.values.percentiles)), LeftOut()
    rows: list[tuple[Any, ...]] = []
    pixels: list[tuple[bytes, str]] = []
    with atomic_path(tar) as temporary, open(temporary, "wb") as file:
        writer = shards.TarWriter(file)
        for place, row in enumerate(plan.rows):
            try:
                if place in plan.repeats:
                    raise BadImage("duplicate", f"the same pixels as {plan.repeats[place]}")
                content = read(row)
                image, size, seen = _load(content, row, data)
                if data.clip is None and isinstance(content, bytes) and animated(content):
                    left_out.add(WORDS, row.key)
            except BadImage as error:
                if error.reason in NO_FAULT:
                    left_out.add(NO_FAULT[error.reason], row.key)
                else:
                    statistics.bad(row.key, error)
                pixels.append((twins.NONE, row.key))
                continue
            pixels.append((seen, row.key))
            bucket = bucket_number(size, data)
            if not isinstance(image, str | Heard) and data.clip is None:
                image = transforms.prepare(image, data, bucket_shape(bucket, data))
            label = number[row.label] if row.label is not None else -1
            member, meta = _add(writer, row, label, image)
            statistics.add(image, size, label, plan.split, bucket, marked(row.attributes))
            rows.append(sidecar_row(row.key, member, meta, label, plan.split, bucket, data))
        writer.close()
    if not plan.repeats:  # else they are there from the first time
        twins.save(twins.path_of(plan.name, work), pixels)
    return finish(plan.name, tar.name, tar, rows, statistics, folder, result_file, data, plan.repeats, left_out)


def _reader(data: Data) -> Callable[[Row], Any]:
    """A function from a row to a file's bytes, values, a sound, or a passage of text."""
    if data.values is not None:
        return rasters.reader(data)
    if data.sound is not None:
        return sounds.reader(data)
    if data.source.kind == "text":
        return lambda row: str(row.location)
    read = sources.reader(data.source)
    return lambda row: read(row.location)


def _load(content: Any, row: Row, data: Data) -> tuple[Any, tuple[int, int], bytes]:
    """A source's image, filtered, its first size (width, height), and the digest of a file's pixels before that. A
    passage of text is as long as it has bytes; those that are alike were found by the listing."""
    if isinstance(content, str):
        return content, (len(content.encode()), 1), twins.NONE
    if isinstance(content, Heard):
        seen = hashlib.blake2b(content.wav, digest_size=16).digest()  # of its samples
        return content, (content.milliseconds, content.rate), seen
    if data.values is not None:
        bands = Bands(np.asarray(content))
        return bands, bands.size, twins.pixel_digest(bands)
    seen = twins.NONE  # rows of arrays are told apart by their values already, computed images may be alike
    if isinstance(content, bytes):
        if hashlib.sha256(content).hexdigest() != row.digest:
            raise UserError(f"{plain(str(row.location))} changed while ingest ran: run it again")
        extension = Path(str(row.location)).suffix[1:].lower()
        if data.clip is not None:
            strip, size = clips.strip(content, data, extension)
            return strip, size, twins.pixel_digest(strip)
        image = transforms.decode(content, data.channels, data.background, data.max_pixels, extension)
        seen = twins.pixel_digest(image)
    else:
        image = transforms.from_array(content, data.channels, data.background)
    return filters.apply(image, data.filters), image.size, seen


def _add(writer: shards.TarWriter, row: Row, label: int, image: Any) -> tuple[shards.Member, shards.Member | None]:
    """A sample's members, as WebDataset names them: KEY.png (or KEY.npy, values [C, h, w], or KEY.wav, KEY.txt),
    KEY.cls, KEY.json with caption and attributes."""
    name = shards.safe_key(row.key)
    if isinstance(image, str):
        member = writer.add(f"{name}.txt", image.encode())
    elif isinstance(image, Heard):
        member = writer.add(f"{name}.wav", image.wav)
    elif isinstance(image, Bands):
        member = writer.add(f"{name}.npy", transforms.to_npy(image.values))
    else:
        member = writer.add(f"{name}.png", transforms.to_png(image))
    if label >= 0:
        writer.add(f"{name}.cls", str(label).encode())
    known = {**row.attributes, **({"caption": row.caption} if row.caption is not None else {})}
    meta = writer.add(f"{name}.json", json.dumps(known, sort_keys=True, ensure_ascii=False).encode()) if known else None
    return member, meta
