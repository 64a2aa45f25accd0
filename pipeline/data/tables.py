"""Tables as sources: rows of text or of Parquet with paths of images, labels, captions and other columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data import parquet
from pipeline.data.labels import Labels
from pipeline.data.listing import Digests, Listing, Row, class_order, existing
from pipeline.data.named_files import Paths
from pipeline.data.text_tables import TextTable
from pipeline.data.values import Values, text_of, whole_text
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.schema.data import TableSource


def list_table(source: TableSource, digests: Digests) -> Listing:
    """The rows of a table whose images are there. Raises UserError, naming file and line, for what is no table."""
    if parquet.is_parquet(source.path):
        return parquet.list_parquet(source, digests)
    path = existing(source.path)
    table = TextTable(path, source.delimiter, source.encoding)
    labels, paths, values = Labels(source.label or "", source.empty_label), Paths(path.parent), Values()
    named = (source.image, source.label, source.caption)
    rows, missing = [], []
    for number, record in table.rows():
        where = f"{path}:{number}"
        for column in named:
            if column and column not in record:
                raise UserError(f"{where}: no column {column!r}; there are {', '.join(map(str, record))}")
            if column in table.repeated:
                raise UserError(f"{path}: {column!r} is the name of more than one column; rename one")
        attributes = {whole_text(k): values(v, k, where) for k, v in record.items() if k not in named}
        label = labels(values(record[source.label], source.label, where), where) if source.label else None
        caption = text_of(values(record[source.caption], source.caption, where)) if source.caption else None
        name, file = paths.find(str(record[source.image]))
        if file is not None:
            key = Path(name).with_suffix("").as_posix()
            rows.append(Row(key, str(file.absolute()), digests.of(file), label, caption, attributes))
        else:
            missing.append(whole_text(name))
    notes = [*table.notes(), *paths.notes(), *values.notes(), *labels.notes()]
    return Listing(rows, class_order(row.label for row in rows if row.label), missing, notes=notes)


def located(source: TableSource, column: str) -> dict[str, str]:
    """By the key of an image the path of the picture that its row names in `column`, whether it is there or not;
    nothing of rows that name none. UserError for a column that is not there."""
    path = existing(source.path)
    table, images, others = TextTable(path, source.delimiter, source.encoding), Paths(path.parent), Paths(path.parent)
    found: dict[str, str] = {}
    for number, record in table.rows():
        if column not in record or column in table.repeated:
            there = ", ".join(map(str, record))
            raise UserError(f"{path}:{number}: no column {column!r}, or more than one; there are {there}")
        value = record[column]
        name, file = images.find(str(record[source.image]))
        key = Path(name).with_suffix("").as_posix()
        if file is None or key in found:  # a later row of the same key is no image
            continue
        found[key] = ""
        if value is not None and str(value).strip():
            named, picture = others.find(str(value))
            found[key] = str((picture or path.parent / named).absolute())
    return {key: place for key, place in found.items() if place}
