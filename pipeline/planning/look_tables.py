"""Tables before there is a config: what `data.source` must say of them, and who or what is on several images."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from pipeline.data import parquet
from pipeline.data.named_files import Paths
from pipeline.data.parquet_files import image_columns, places, schema_of
from pipeline.data.text_tables import TextTable
from pipeline.errors import UserError
from pipeline.planning import columns

Groups = tuple[str, list[str]]  # a column, and its value for each image that is there
Looked = tuple[dict[str, Any], Groups | None, list[str]]  # `data.source`, groups, lines that a user may want to know


def image_column(table: Path, most: int = 50) -> str | None:
    """The column whose values are files beside the table (most of the first rows)."""
    try:
        records = [record for _, record in itertools.islice(TextTable(table).rows(), most)]
    except UserError:
        return None
    if not records:
        return None
    paths = Paths(table.parent)
    hits = {c: sum(bool(r.get(c)) and paths.find(str(r[c]))[1] is not None for r in records) for c in records[0]}
    best = max(hits, key=lambda c: (hits[c], c in columns.IMAGE_WORDS), default=None)
    return best if best is not None and hits[best] * 2 > len(records) else None


def table_source(table: Path) -> Looked:
    """What a table of text says. Raises UserError where it names no images."""
    image = image_column(table)
    if image is None:
        raise UserError(f"{table}: no column names image files that lie beside it; paths are relative to its folder")
    records = [record for _, record in TextTable(table).rows()]
    values = {c: [columns.cell(r.get(c)) for r in records] for c in records[0] if c != image}
    named, group = columns.named(values, {c: [columns.first_text(r.get(c)) for r in records] for c in values})
    source = {"kind": "table", "path": str(table), "image": image, **named}
    notes = columns.maybe_labels(values, named, group)
    if group is None:
        return source, None, notes
    paths = Paths(table.parent)
    there = [paths.find(str(r.get(image)))[1] is not None for r in records]
    return source, (group, [value for value, found in zip(values[group], there, strict=True) if found]), notes


def parquet_source(path: str) -> Looked:
    """What Parquet files say: the column of images by Hugging Face's metadata, by its name, or by
    holding bytes."""
    path = str(Path(path).absolute())
    files, _ = parquet.chosen_files(path)
    schema = schema_of(files[0], next(iter(image_columns(files[0])), "image"))
    plain = [name for name in schema.columns if name != schema.image and name not in schema.binary]
    rows = [place.columns for file in files for place in places(file, schema, plain)]
    values = {name: [columns.cell(row[name]) for row in rows] for name in plain}
    named, group = columns.named(values, {c: [columns.first_text(row[c]) for row in rows] for c in plain})
    numbers = [name for name in schema.names if name in plain]
    if "label" not in named and len(numbers) == 1:  # the metadata name its classes
        named["label"] = numbers[0]
    source = {"kind": "table", "path": path, "image": schema.image, **named}
    notes = columns.maybe_labels(values, named, group)
    return source, (group, values[group]) if group else None, notes
