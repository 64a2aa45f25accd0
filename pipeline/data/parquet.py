"""Parquet files as sources: a column of images as bytes, of paths, or of both, as Hugging Face's data sets have them.

Listing reads no image where it need not; an image that is inside of a file is found again by FILE:GROUP:ROW.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.array_names import SPLITS
from pipeline.data.labels import Labels
from pipeline.data.listing import Digests, Listing, Row, Unread, class_order, existing
from pipeline.data.named_files import Paths
from pipeline.data.parquet_files import PLACE, holds_lists, missing_images, places, reader, schema_of
from pipeline.data.values import Values, text_of, whole_text
from pipeline.errors import UserError, many

if TYPE_CHECKING:
    from pipeline.schema.data import TableSource

SUFFIXES = (".parquet", ".pq")


def is_parquet(path: str) -> bool:
    """Whether a table's path means Parquet files: one, a pattern of them, or a folder."""
    return path.lower().endswith(SUFFIXES) or Path(path).is_dir()


def files_of(path: str) -> list[Path]:
    """The files, sorted: one, those of a pattern, or all in and below a folder. UserError for none."""
    if Path(path).is_dir():
        found = [p for p in Path(path).rglob("*") if p.suffix.lower() in SUFFIXES and not _hidden(p, Path(path))]
    else:
        found = [Path(p) for p in glob.glob(path)] if "*" in path else [existing(path)]  # noqa: PTH207 - absolute too
    if not found:
        raise UserError(f"data.source: {path} holds no .parquet files (looked from {Path.cwd()}): correct the path")
    return sorted(file.absolute() for file in found)


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def chosen_files(path: str) -> tuple[list[Path], list[str]]:
    """The files without those that are named for tests, where others are named train and val; and what to know."""
    files = files_of(path)
    split = {file: split_of_name(file.name) for file in files}
    if {"train", "val", "test"} <= {*split.values()}:
        kept = [file for file in files if split[file] != "test"]
        return kept, [f"{many(len(files) - len(kept), '.parquet file')} named for tests left out"]
    return files, []


def split_of_name(name: str) -> str | None:
    """train, val or test, where a file's name begins with it, as in train-00000-of-00002.parquet."""
    return SPLITS.get(re.split(r"[^a-z]+", name.lower())[0])


def list_parquet(source: TableSource, digests: Digests) -> Listing:
    """The images of Parquet files; with `Unread`, without digests and without reading images."""
    found = _list(source)
    return replace(found, rows=with_digests(source, found.rows, digests)) if digests.reads else found


def with_digests(source: TableSource, rows: Sequence[Row], digests: Digests) -> list[Row]:
    """Rows with the digests of their images, which are read in order."""
    read, done = reader(source.image), []
    for row in rows:
        inside = PLACE.fullmatch(str(row.location)) is not None
        found = hashlib.sha256(read(row.location)).hexdigest() if inside else digests.of(str(row.location))
        done.append(replace(row, digest=found))
    return done


def identity(source: TableSource, digests: Digests) -> list[Any]:
    """What decides on the images and what is known of them, without reading images that are inside of the files."""
    files, _ = chosen_files(source.path)
    keys: list[Any] = [source.image, source.label, source.caption, source.empty_label]
    if source.caption and any(holds_lists(file, source.caption) for file in files):
        keys.append("several captions")  # once they were one text
    known = [[_stem(source, file), digests.of(file)] for file in files]
    if not any(count != 0 for file in files for count in missing_images(file, schema_of(file, source.image))):
        return [keys, known]
    found = list_parquet(source, Unread())
    outside = [row for row in found.rows if PLACE.fullmatch(str(row.location)) is None]
    return [keys, known, [[row.key, digests.of(str(row.location))] for row in outside], found.missing]


def located(source: TableSource, column: str) -> dict[str, str]:
    """By the key of an image the place of the picture that its row has in `column`: FILE:GROUP:ROW, or its path,
    whether it is there or not; nothing of rows that have none. UserError for a column that is none of pictures."""
    found: dict[str, str] = {}
    for file in chosen_files(source.path)[0]:
        schema, paths, first = schema_of(file, column), Paths(file.parent), schema_of(file, source.image)
        labels = Labels(source.label or "", source.empty_label, first.names.get(source.label or ""))
        rows = _rows_of(file, source, labels, Values(), Paths(file.parent))
        for row, place in zip(rows, places(file, schema, []), strict=True):
            if not isinstance(row, Row) or row.key in found:  # a later row of the same key is no image
                continue
            found[row.key] = ""
            if place.inside:
                found[row.key] = f"{file}:{place.group}:{place.row}"
            elif place.path:
                name, there = paths.find(place.path)
                found[row.key] = str((there or file.parent / name).absolute())
    return {key: place for key, place in found.items() if place}


def _stem(source: TableSource, file: Path) -> str:
    """A file's part of keys: its path below the source's folder, without suffix."""
    root = Path(source.path).absolute()
    inside = file.relative_to(root) if root.is_dir() else Path(file.name)
    return inside.with_suffix("").as_posix()


def _list(source: TableSource) -> Listing:
    if source.delimiter or source.encoding:
        raise UserError("`data.source.delimiter` and `encoding` are of tables as text, not of Parquet: leave them out")
    files, notes = chosen_files(source.path)
    first = schema_of(files[0], source.image)
    names = first.names.get(source.label or "")
    labels, values = Labels(source.label or "", source.empty_label, names), Values()
    rows: list[Row] = []
    missing: list[str] = []
    mended: list[str] = []
    for file in files:
        paths = Paths(file.parent)
        for row in _rows_of(file, source, labels, values, paths):
            if isinstance(row, Row):
                rows.append(row)
            else:
                missing.append(row)
        mended += [f"{file.name}: {line}" for line in paths.notes()]
    if first.image != source.image:
        notes.append(f"images are read from column {first.image!r}, as the files' metadata say")
    if left_out := [name for name in first.binary if name != first.image]:
        notes.append(f"columns of bytes are not kept beside the images: {', '.join(left_out)}")
    present = {row.label for row in rows if row.label}
    classes = [*names, *sorted(present - set(names))] if names else class_order(present)
    return Listing(rows, classes, missing, notes=[*notes, *mended, *values.notes(), *labels.notes()])


def _rows_of(file: Path, source: TableSource, labels: Labels, values: Values, paths: Paths) -> Iterator[Row | str]:
    """The rows of a file, or the names of those without image."""
    schema, stem, split = schema_of(file, source.image), _stem(source, file), split_of_name(file.name)
    for column in (source.label, source.caption):
        if column and column not in schema.columns:
            raise UserError(f"{file}: no column {column!r}; there are {', '.join(schema.columns)}")
    named = (schema.image, source.label, source.caption)
    carried = [name for name in schema.columns if name not in named and name not in schema.binary]
    columns = dict.fromkeys([*carried, *(name for name in named[1:] if name)])
    for number, place in enumerate(places(file, schema, list(columns))):
        where = f"{file}, row {number}"
        known = {name: values(value, name, where) for name, value in place.columns.items()}
        attributes = {**({"split": split} if split else {}), **{whole_text(name): known[name] for name in carried}}
        label = labels(known[source.label], where) if source.label else None
        caption = text_of(known[source.caption]) if source.caption else None
        if place.inside:
            location = f"{file}:{place.group}:{place.row}"
            yield Row(f"{stem}/{number:08d}", location, "", label, caption, attributes)
            continue
        name, there = paths.find(place.path) if place.path else (f"{stem}, row {number}: no image", None)
        if there is None:
            yield whole_text(name)
        else:
            key = Path(name).with_suffix("").as_posix()
            yield Row(key, str(there.absolute()), "", label, caption, attributes)
