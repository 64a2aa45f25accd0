"""Condition shards: what each sample of an image shard is told, as arrays that are read by slices of a memory map.

A safetensors file a shard, in a pool that all runs share, named by the values it holds: of a categorical attribute
`NAME` int32 [n] (place in the shard's own list of values, -1 for none), of a continuous one float32 [n] (NaN for none),
of labels uint8 [n, k] (255 in a row of none); of captions `caption` uint8 [bytes of all], `caption.ends` int64 [m + 1],
and `caption.first` int64 [n + 1]: sample i has the captions first[i] to first[i + 1]. Beside it a record with the
shard's lists of values. Captions that a frozen encoder read lie in a file of their own, `caption_shards.py`, and so do
spatial conditions, `map_shards.py`. What a value may be is in `condition_values.py`, what a rank makes of it in
`loader.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import caption_shards, condition_report, condition_values, map_shards
from pipeline.data.array_files import Array, mapped, save
from pipeline.data.captions import captions_of, cut, symbols
from pipeline.data.index import OPEN, Index, Open
from pipeline.data.latent_pool import entry_path, is_whole
from pipeline.errors import UserError
from pipeline.files import digest, read_json, sha256_file, write_json

MISSING = 255  # in a row of labels: none told
KEY = "__key__"  # a sample's key among its columns, for messages
FORMAT = 1  # of the files; raise it when their meaning changes


def write(pool: Path, condition: Mapping[str, Any], metas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put one shard's values into the pool, unless they are there; returns its record.

    condition: {attributes: {name: {kind, column, ...}}, caption: {tokens} or None}, with `encoder` beside tokens where
    captions are embedded elsewhere, and only counted here. metas: of each sample its columns.
    Record: {file, bytes, sha256, count, values: of each attribute the shard's list, told: samples that have a value by
    name, captions, cut: captions that were too long, longest: bytes of the longest, seen: counts
    (`condition_report.py`), columns: all there are}.
    UserError, naming the column, for a value that does not fit.
    """
    attributes, caption = condition["attributes"], condition["caption"]
    values, texts = values_of(condition, metas)
    recipe = {name: [o["kind"], o.get("range")] for name, o in attributes.items()}
    held = caption and "encoder" not in caption  # as bytes
    limit = caption["tokens"] - 1 if held else 0
    path = pool / f"{digest([FORMAT, recipe, limit, values, texts or len(metas)])[:32]}.safetensors"
    if is_whole(path) and "seen" in (known := read_json(entry_path(path))):  # not of files of before there were counts
        return dict(known)
    arrays: dict[str, Array] = {}
    lists: dict[str, list[str]] = {}
    for name, options in attributes.items():
        arrays[name], lists[name] = _array(options["kind"], values[name])
    written = [[cut(text, limit) for text in several] for several in texts]
    if held:
        flat = [content for several in written for content in several]
        arrays["caption"] = np.frombuffer(b"".join(flat), np.uint8)
        arrays["caption.ends"] = np.cumsum([0, *map(len, flat)], dtype=np.int64)
        arrays["caption.first"] = np.cumsum([0, *map(len, written)], dtype=np.int64)
    save(path, arrays)
    whole = [len(text.encode()) for several in texts for text in several]
    record = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "count": len(metas),
        "values": lists,
        "told": {name: sum(v is not None for v in found) for name, found in values.items()}
        | ({"caption": sum(map(bool, texts))} if caption else {}),
        "captions": len(whole),
        "cut": sum(size > limit for size in whole),
        "longest": min(limit, max(whole, default=0)),
        "seen": condition_report.seen(values, texts if caption else None),
        "columns": sorted({str(column) for meta in metas for column in meta if column != KEY}),
    }
    write_json(entry_path(path), record)
    return record


def values_of(
    condition: Mapping[str, Any], metas: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, list[Any]], list[list[str]]]:
    """Of samples by their columns the values of each attribute, and their captions, where there are to be any.
    UserError, naming the column, for a value that does not fit."""
    attributes = condition["attributes"].items()
    values = {name: [_value(name, options, meta) for meta in metas] for name, options in attributes}
    return values, [captions_of(meta.get("caption")) for meta in metas] if condition["caption"] else []


def columns_of(index: Index, i: int, label: str | None) -> dict[str, Any]:
    """The columns of sample i: what its source has of it, its class by the name of its column, and its key."""
    known = {} if index.label(i) < 0 else {label or "class": index.classes[index.label(i)]}
    return {**index.meta(i), **known, KEY: index.key(i)}


def _value(name: str, options: Mapping[str, Any], meta: Mapping[str, Any]) -> Any:
    """A sample's value as JSON has it: a number, a text, a sorted list of labels, or None."""
    value = meta.get(options["column"])
    if options["kind"] == "categorical":
        return condition_values.label(value)
    if options["kind"] == "multi_label":
        found = condition_values.labels(value, options["separator"])
        return None if found is None else sorted(set(found))
    try:
        return condition_values.number(value, options["range"])
    except ValueError as error:
        raise UserError(
            f"`diffusion.condition.attributes.{name}`: column {options['column']!r} of {meta.get(KEY, '?')}: "
            f"{error}; mend the value, or the range"
        ) from None


def _array(kind: str, values: Sequence[Any]) -> tuple[Array, list[str]]:
    if kind == "continuous":
        return np.array([np.nan if v is None else v for v in values], np.float32), []
    several = [[] if v is None else [v] if isinstance(v, str) else v for v in values]
    names = sorted({name for found in several for name in found})
    places = {name: i for i, name in enumerate(names)}
    if kind == "categorical":
        return np.array([-1 if v is None else places[v] for v in values], np.int32), names
    held = np.zeros((len(values), max(1, len(names))), np.uint8)  # a column at least, to say in that none is told
    for row, (value, found) in enumerate(zip(values, several, strict=True)):
        held[row, [places[name] for name in found]] = 1
        if value is None:
            held[row] = MISSING
    return held, names


class ConditionIndex:
    """The conditions of one split (of one bucket), numbered as its latents are.

    attributes, caption: options as a model has them. rows: int64 [n], the sample whose conditions each latent has,
    where these are not in the latents' own order (`data.on_corrupt: skip`). embedded: records of the files of captions
    that a frozen encoder read, one for each of `records`. spatial: options of the maps; maps: records of their files.
    limit: files of each kind that are open at once.
    """

    def __init__(
        self,
        pool: Path,
        records: Sequence[Mapping[str, Any]],
        attributes: Mapping[str, Mapping[str, Any]],
        caption: Mapping[str, Any] | None,
        rows: Array | None = None,
        embedded: Sequence[Mapping[str, Any]] = (),
        spatial: Mapping[str, Mapping[str, Any]] | None = None,
        maps: Sequence[Mapping[str, Any]] = (),
        limit: int = OPEN,
    ) -> None:
        self.spatial, self._map_files = dict(spatial or {}), [(pool / r["file"], r["bytes"]) for r in maps]
        self._maps: Open[dict[str, Array]] = Open(self._open_maps, limit)
        self.attributes, self.caption, self.rows = dict(attributes), caption, rows
        self._embedded = [(pool / record["file"], record["bytes"]) for record in embedded]
        self._files = [(pool / record["file"], record["bytes"]) for record in records]
        self._values = [record["values"] for record in records]
        counts = np.array([record["count"] for record in records], np.int64)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        self._shards: Open[dict[str, Array]] = Open(self._open, limit)
        self._captions: Open[dict[str, Array]] = Open(self._open_captions, limit)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, indices: Array, which: Array | float = 0.0, mirrored: Array | bool = False) -> dict[str, Array]:
        """The rows [n, ...] of each condition of samples `indices` int64 [n]. which: a number in [0, 1) each, that
        draws one of a sample's captions; mirrored: whether its maps are to be."""
        told = np.asarray(indices, np.int64) if self.rows is None else self.rows[indices]
        each = np.broadcast_to(np.asarray(which, np.float64), told.shape)
        turned = np.broadcast_to(np.asarray(mirrored, bool), told.shape)
        found = [self._row(int(i), float(w), bool(m)) for i, w, m in zip(told, each, turned, strict=True)]
        return {name: np.stack([row[name] for row in found]) for name in found[0]} if found else {}

    def map_of(self, i: int, name: str) -> Array | None:
        """A map of sample i, uint8 [K, h, w]; None where it has none."""
        shard, place = self._place(i)
        arrays = self._maps[shard]
        return arrays[name][place] if arrays[f"{name}.told"][place] else None

    def _place(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return shard, i - int(self._starts[shard])

    def _row(self, i: int, which: float, mirrored: bool) -> dict[str, Any]:
        shard, place = self._place(i)
        arrays = self._shards[shard]
        row: dict[str, Any] = {}
        for name, options in self.attributes.items():
            value = arrays[name][place]
            if options["kind"] == "continuous":
                low, high = options["range"]
                row[name] = np.float32(-1.0 if np.isnan(value) else (value - low) / (high - low))
            else:
                table = arrays[f"{name}.table"]
                one = options["kind"] == "categorical"
                row[name] = table[value] if one else _spread(value, table, len(options["values"]))
        if self._embedded and self.caption is not None:
            row |= caption_shards.rows(self.caption, caption_shards.read(self._captions[shard], place, which))
        elif self.caption is not None:
            first, last = (int(n) for n in arrays["caption.first"][place : place + 2])
            content = np.empty(0, np.uint8)
            if last > first:
                chosen = first + min(int(which * (last - first)), last - first - 1)
                begin, end = (int(n) for n in arrays["caption.ends"][chosen : chosen + 2])
                content = arrays["caption"][begin:end]
            row["caption"] = symbols(content[: self.caption["tokens"] - 1], self.caption["tokens"])
        if self.spatial:
            row |= map_shards.rows(self._maps[shard], self.spatial, place, mirrored)
        return row

    def _open(self, shard: int) -> dict[str, Array]:
        """A shard's arrays, mapped, and of each list of values the place of its own in the model's: NAME.table."""
        arrays = _whole(*self._files[shard])
        for name, options in self.attributes.items():
            if options["kind"] != "continuous":
                places = {text: i for i, text in enumerate(options["values"])}
                own = [places[text] for text in self._values[shard][name]]
                arrays[f"{name}.table"] = np.array([*own, len(places)], np.int64)  # the last: none, at -1
        return arrays

    def _open_captions(self, shard: int) -> dict[str, Array]:  # no lambdas: reader processes are sent this
        return _whole(*self._embedded[shard])

    def _open_maps(self, shard: int) -> dict[str, Array]:
        return _whole(*self._map_files[shard])


def _whole(path: Path, size: int) -> dict[str, Array]:
    if not path.exists() or path.stat().st_size != size:
        raise UserError(f"{path}: missing or of another size; run again with --rebuild conditions")
    return mapped(path)


def _spread(value: Array, table: Array, count: int) -> Array:
    """A shard's row of labels [k] as the model's [count], float32; -1 where none is told."""
    row = np.full(count, -1.0 if value[0] == MISSING else 0.0, np.float32)
    row[table[np.flatnonzero(value == 1)]] = 1.0
    return row


def merged_values(records: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    """All values of an attribute, sorted."""
    return sorted({value for record in records for value in record["values"].get(name, [])})
