"""Text as a source: .txt files, or a column of a .csv, .tsv, .jsonl or Parquet file, as passages with class and
document.

What is no text (not UTF-8, too long, empty) is named with its reason, for the quarantine; a passage that was there
before is left out and counted. Cleaning and cutting is `passages.py`'s.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.data import parquet
from pipeline.data.folders import files_under
from pipeline.data.labels import Labels
from pipeline.data.listing import LeftOut, Listing, Row, class_order, existing, keys_of, plain
from pipeline.data.parquet_files import opened
from pipeline.data.passages import clean, passages
from pipeline.data.text_tables import SUFFIXES, TextTable
from pipeline.data.turns import joined
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.schema.text import TextSource

GAP = re.compile(rb"\r?\n(?:[ \t]*\r?\n)+")  # between paragraphs


class Text(NamedTuple):
    """A text of a source: what messages call it, its document, its class, it or its bytes (None: there is none), the
    text before, and, of one that is too long to be read, its bytes."""

    name: str
    document: str
    label: str | None
    content: str | bytes | None
    before: str = ""
    size: int = 0


def list_text(source: TextSource) -> Listing:
    """The passages of a source, in its order; a row's location is the passage itself. UserError for what is none."""
    labels = Labels(source.label or "")
    notes: list[str] = []
    texts = _of_table(source, labels, notes) if _is_table(source.path) else _of_files(source)
    rows: list[Row] = []
    bad: list[dict[str, str]] = []
    numbers: dict[str, int] = {}
    seen: set[str] = set()
    left_out = LeftOut()
    for text in texts:
        try:
            content = _checked(text, source.longest)
        except ValueError as error:
            reason, detail = error.args
            bad.append({"key": text.name, "reason": reason, "detail": detail})
            continue
        found = passages(content, source.passage)
        if source.before and len(found) > 1:  # what goes on is no reply
            left_out.add("passages behind the first of a text, which has another before it", text.name, len(found) - 1)
            found = found[:1]
        for passage in found:
            known_by = f"{text.before}\0{passage}" if text.before else passage
            digest = hashlib.sha256(known_by.encode()).hexdigest()
            if digest in seen:
                left_out.add("passages that were there before", text.name)
                continue
            seen.add(digest)
            number = numbers[text.document] = numbers.get(text.document, -1) + 1
            key, known = f"{text.document}/{number:06d}", {"document": text.document}
            rows.append(Row(key, passage, digest, text.label, text.before or None, known, together=text.document))
    notes += labels.notes() if source.label else []
    return Listing(rows, class_order(row.label for row in rows if row.label), [], left_out, notes, bad)


def _checked(found: Text, longest: int) -> str:
    """A text, cleaned. ValueError(reason, detail) where it is none."""
    content, size = found.content, found.size
    if content is not None:
        size = len(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    if size > longest:
        raise ValueError("too long", f"{size:,} bytes, `data.source.longest` is {longest:,}")
    if isinstance(content, bytes) and b"\0" in content:  # UTF-16 of other scripts than Latin would be other letters
        raise ValueError("not UTF-8", "holds bytes of 0, as UTF-16 and files of no text do: save it as UTF-8")
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content or ""
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8", str(error)) from None
    text = clean(text)
    if not text:
        raise ValueError("empty", "no text is left but white space and control characters")
    return text


# ---- .txt files ------------------------------------------------------------------------------------------------------


def _of_files(source: TextSource) -> Iterator[Text]:
    root = existing(source.path)
    if not root.is_dir() and root.suffix.lower() != ".txt":
        known = ".txt, .csv, .tsv, .jsonl and .parquet"
        raise UserError(f"data.source (text): {root} is none of {known}: convert or rename it")
    files, _ = files_under(root, lambda path: path.suffix.lower() == ".txt")
    where = root if root.is_dir() else root.parent
    for inside, document in zip(files, keys_of([file.as_posix() for file in files]), strict=True):
        label = _class_of(inside, source.class_from)
        try:
            size = (where / inside).stat().st_size
            if source.unit == "file" and size > source.longest:  # before it is in memory
                yield Text(document, document, label, None, size=size)
                continue
            content = (where / inside).read_bytes()
        except OSError as error:
            raise UserError(f"{plain(str(where / inside))}: {error.strerror}; give rights to read it") from None
        if not content.strip():
            yield Text(document, document, label, content)
        for number, part in enumerate(_units(content, source.unit), 1):
            if part.strip():  # what lies between two empty lines is no text
                yield Text(f"{document}:{source.unit} {number}", document, label, part)


def _units(content: bytes, unit: str) -> list[bytes]:
    if unit == "file":
        return [content]
    return content.split(b"\n") if unit == "line" else GAP.split(content)


def _class_of(inside: Path, classes: str | None) -> str | None:
    if classes is None:
        return None
    if classes == "folder":
        return plain(inside.parent.as_posix()) if inside.parent != Path() else None
    found = re.search(classes, plain(inside.as_posix()))
    return found[1] if found else None


# ---- tables ----------------------------------------------------------------------------------------------------------


def _is_table(path: str) -> bool:
    """By the name's end: a folder is one of .txt files, unless it holds Parquet files and none of these."""
    if Path(path).is_dir():
        inside = {file.suffix.lower() for file in Path(path).rglob("*") if file.is_file()}
        return ".txt" not in inside and not inside.isdisjoint(parquet.SUFFIXES)
    return path.lower().endswith((*SUFFIXES, *parquet.SUFFIXES))


def _of_table(source: TextSource, labels: Labels, notes: list[str]) -> Iterator[Text]:
    for file, number, record in _records(source, notes):
        where = f"{file}:{number}"
        for column in (source.column, source.label, source.document, source.before):
            if column and column not in record:
                raise UserError(f"{where}: no column {column!r}; there are {', '.join(map(str, record))}")
        value = record[source.column]
        if value is not None and not isinstance(value, (str, bytes)):
            raise UserError(f"{where}: column {source.column!r} holds {type(value).__name__}, expected text")
        name = f"{file.name}:{number}"
        document = _document(record[source.document]) if source.document else ""
        stem = _inside(file, source.path).with_suffix("").as_posix()
        document = document or f"{plain(stem)}/{number:08d}"  # one of its own: texts that no one groups are no group
        before = _before(record[source.before], source, where) if source.before else ""
        yield Text(name, document, labels(record[source.label], where) if source.label else None, value, before)


def _inside(file: Path, path: str) -> Path:
    """A file's path inside of a folder; of one that was named, or found by a pattern, its name."""
    folder = Path(path).absolute()
    return file.relative_to(folder) if folder.is_dir() else Path(file.name)


def _document(value: Any) -> str:
    """A document's name; empty where a row has none: null, no text, NaN (of a column of numbers with gaps)."""
    return "" if value is None or value != value else plain(str(value)).strip()


def _before(value: Any, source: TextSource, where: str) -> str:
    """The text before: a text, or a list of turns; none is empty."""
    turns = value if isinstance(value, list) else [] if value is None else [value]
    if others := [type(turn).__name__ for turn in turns if not isinstance(turn, str)]:
        raise UserError(f"{where}: column {source.before!r} holds {others[0]}, expected text or a list of it")
    return joined(turns, source.before_bytes)


def _records(source: TextSource, notes: list[str]) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """(file, number of the line or row, values by column); to `notes` what was found that is not the usual."""
    wanted = [column for column in (source.column, source.label, source.document, source.before) if column]
    if not parquet.is_parquet(source.path):
        table = TextTable(existing(source.path))
        for number, record in table.rows():
            if twice := table.repeated.intersection(wanted):
                raise UserError(f"{table.path}: {min(twice)!r} is the name of more than one column; rename one")
            yield table.path, number, record
        notes += table.notes()
        return
    for path in parquet.files_of(source.path):
        number = 0
        with opened(path) as table:
            there = [name for name in wanted if name in table.schema_arrow.names]
            for batch in table.iter_batches(columns=there if len(there) == len(wanted) else None):
                for record in batch.to_pylist():
                    yield path, number, record
                    number += 1
