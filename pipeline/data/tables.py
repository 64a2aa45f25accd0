"""Tables as sources: .csv and .jsonl with paths of images, labels, captions and other columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.listing import Digests, Listing, Row, class_order, existing
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.schema.data import TableSource


def list_table(source: TableSource, digests: Digests) -> Listing:
    path = existing(source.path)
    rows, missing = [], []
    for number, record in _records(path):
        for column in (source.image, source.label, source.caption):
            if column and column not in record:
                raise UserError(f"{path}:{number}: no column {column!r}; there are {', '.join(map(str, record))}")
        name = str(record[source.image])
        attributes = {k: v for k, v in record.items() if k not in (source.image, source.label, source.caption)}
        label = _text(record[source.label]) if source.label else None
        caption = _text(record[source.caption]) if source.caption else None
        file = path.parent / name
        if file.is_file():
            key = Path(name).with_suffix("").as_posix()
            rows.append(Row(key, str(file.absolute()), digests.of(file), label, caption, attributes))
        else:
            missing.append(name)
    return Listing(rows, class_order(row.label for row in rows if row.label), missing)


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each row of a .csv or .jsonl file."""
    if path.suffix not in (".csv", ".jsonl"):
        raise UserError(f"data.source: {path} is neither .csv nor .jsonl: convert or rename it")
    try:
        yield from _parsed(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a table in UTF-8 ({error}): convert it") from error


def _parsed(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        if path.suffix == ".csv":
            for record in (table := csv.DictReader(file)):
                if None in record or None in record.values():
                    columns = len(table.fieldnames or [])
                    raise UserError(f"{path}:{table.line_num}: a row of more or fewer than {columns} columns")
                yield table.line_num, record
            return
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not JSON ({error}): one object a line is expected") from error
            if not isinstance(record, dict):
                raise UserError(f"{path}:{number}: expected an object, got {type(record).__name__}")
            yield number, record
