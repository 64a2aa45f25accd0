"""Tables as text: .csv, .tsv and .jsonl as people, programs and spreadsheets write them.

Excel writes a .csv in the encoding of the country (cp1252) with semicolons where the comma is decimal, "Unicode text"
as UTF-16 with tabs, UTF-8 with a mark in front, a first line `sep=;`, rows of nothing but delimiters; Numbers and
LibreOffice write UTF-8. What was found is said where it is not the usual; `data.source.delimiter`, `encoding` set it.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
HEAD = 1 << 18  # characters from which the delimiter is found
BLOCK = 1 << 20  # bytes
TAB = "\t"
CELL = 1 << 24  # characters of a cell at most; where a quotation never ends, the rest of the file is one
MEND = "save it as UTF-8 with commas, or with `kind: table` set `data.source.encoding` and `delimiter`"
Record = dict[str, Any]


class TextTable:
    """The rows of a .csv, .tsv or .jsonl file. `notes` tells, after the rows were read, what was found and mended."""

    def __init__(self, path: Path, delimiter: str | None = None, encoding: str | None = None) -> None:
        """delimiter, encoding: None to find them. Raises UserError for another kind of file and an unknown encoding."""
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"data.source: {path} is neither .csv, .tsv, .jsonl nor .parquet: convert or rename it")
        self.path, self.lines = path, path.suffix.lower() == ".jsonl"
        if delimiter is not None and self.lines:
            raise UserError(f"`data.source.delimiter` is of .csv and .tsv files, but {path} is .jsonl: leave it out")
        self.encoding = _known(encoding) if encoding else find_encoding(path, latin=not self.lines)
        self.repeated: set[str] = set()  # columns that are there more than once
        self._delimiter, self._said = (
            "\t" if delimiter == "tab" else delimiter,
            (delimiter is not None, encoding is not None),
        )
        self._did: Counter[str] = Counter()
        self._lone = False  # whether some quotation marks enclose no column

    def rows(self) -> Iterator[tuple[int, Record]]:
        """(line number, column -> value) of each row. Raises UserError, naming the line, for what is no table."""
        try:
            with open(self.path, newline="", encoding=self.encoding) as file:
                yield from self._objects(file) if self.lines else self._records(file)
        except UnicodeError as error:
            raise UserError(f"{self.path} is not text in {self.encoding} ({error}): {MEND}") from error

    def notes(self) -> list[str]:
        """What was found that is not the usual, and what was passed over, each in a line."""
        usual = "\t" if self.path.suffix.lower() == ".tsv" else ","
        found = []
        if self.encoding != "utf-8-sig" and not self._said[1]:
            found.append(f"in {self.encoding}")
        if self._delimiter not in (None, usual) and not self._said[0]:
            found.append(f"with {DELIMITERS.get(self._delimiter, repr(self._delimiter))} between columns")
        lines = [f"{self.path.name} is read as text {' '.join(found)}; if that is wrong, {MEND}"] if found else []
        if self._lone:
            lost = " and are lost, with line ends where one never ends: double them"
            done = ", so that all are kept as they stand" if self._delimiter == TAB else lost
            lines.append(f"{self.path.name}: some quotation marks enclose no column{done}")
        for what in ("empty lines passed over", "values left out that are in a column without a name"):
            if self._did[what]:
                lines.append(f"{self.path.name}: {what}: {self._did[what]:,}")
        return lines

    # ---- .csv and .tsv -----------------------------------------------------------------------------------------------

    def _records(self, file: Any) -> Iterator[tuple[int, Record]]:
        skipped = self._sep_line(file)
        csv.field_size_limit(CELL)
        self._lone = _lone_quotes(file, self._delimiter or "")
        how: Any = csv.QUOTE_NONE if self._lone and self._delimiter == TAB else csv.QUOTE_MINIMAL
        reader = csv.reader(file, delimiter=self._delimiter or "", quoting=how)
        try:
            header = [name.lstrip("\ufeff").strip() for name in next(reader, [])]
            self.repeated = {name for name, count in Counter(header).items() if name and count > 1}
            for row in reader:
                if record := self._record(header, row, skipped + reader.line_num):
                    yield skipped + reader.line_num, record
        except csv.Error as error:
            raise UserError(f"{self.path}:{skipped + reader.line_num}: {error}: mend the row") from error

    def _sep_line(self, file: Any) -> int:
        """Find the delimiter, and go on behind a first line `sep=;`, Excel's; the lines that were skipped."""
        head = file.read(HEAD)
        cut, first = len(head) == HEAD, next(iter(head.splitlines()), "")
        named = re.fullmatch(r'\ufeff?"?sep=(.)"?', first, re.IGNORECASE)
        usual = "\t" if self.path.suffix.lower() == ".tsv" else ","
        self._delimiter = self._delimiter or (named[1] if named else find_delimiter(head, cut, usual))
        file.seek(0)
        if named:
            file.readline()
        return int(named is not None)

    def _record(self, header: list[str], row: list[str], line: int) -> Record | None:
        """A row by its header's names, or None for an empty one."""
        if not any(cell.strip() for cell in row):
            self._did["empty lines passed over"] += bool(row)
            return None
        while len(row) > len(header) and not row[-1].strip():  # delimiters at the end of a line
            row = row[:-1]
        if len(row) != len(header):
            raise UserError(f"{self.path}:{line}: a row of more or fewer than {len(header)} columns")
        pairs = list(zip(header, row, strict=True))
        unnamed = [cell for name, cell in pairs if not name and cell.strip()]
        if len(unnamed) > 1:  # one is an index that pandas writes; of several, none can be told from the other
            self._did["values left out that are in a column without a name"] += len(unnamed)
        return {name: cell for name, cell in pairs if name or (cell.strip() and len(unnamed) == 1)}

    # ---- .jsonl ------------------------------------------------------------------------------------------------------

    def _objects(self, file: Any) -> Iterator[tuple[int, Record]]:
        for number, line in enumerate(file, 1):
            if not line.strip():
                self._did["empty lines passed over"] += 1
                continue
            where = f"{self.path}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # no JSON, or a number of thousands of digits
                raise UserError(f"{where}: not JSON ({error}): one object a line is expected") from error
            if not isinstance(record, dict):
                raise UserError(f"{where}: expected an object, got {type(record).__name__}")
            yield number, record


def _lone_quotes(file: Any, delimiter: str) -> bool:
    """Whether some quotation marks are those of the text: read as what encloses a column, they would stand in its
    middle, never end, or hold whole rows (in a table with tabs, as most of sentences are)."""
    start = file.tell()
    try:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        return any(delimiter == TAB and TAB in cell and "\n" in cell for row in rows for cell in row)
    except csv.Error:
        return True
    finally:
        file.seek(start)


def find_encoding(path: Path, latin: bool) -> str:
    """By the mark in front, by zeros between ASCII letters, else UTF-8 if all of it is, else cp1252 (with `latin`).

    Raises UserError where it is none of these.
    """
    with open(path, "rb") as file:
        head = file.read(4096)
        for mark, name in MARKS:
            if head.startswith(mark):
                return name
        zeros = [head[start::2].count(0) for start in (0, 1)]
        if max(zeros) > len(head) // 4:
            return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
        file.seek(0)
        blocks = iter(lambda: file.read(BLOCK), b"")
        try:
            for text in codecs.iterdecode(blocks, "utf-8"):
                del text
            return "utf-8-sig"
        except UnicodeDecodeError as error:
            if not latin:
                raise UserError(f"{path} is not in UTF-8 ({error}): {MEND}") from error
            if error.reason == "unexpected end of data":
                raise UserError(f"{path} ends within a character: copy it again, or {MEND}") from error
        file.seek(0)
        try:
            for text in codecs.iterdecode(iter(lambda: file.read(BLOCK), b""), "cp1252"):
                del text
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is neither in UTF-8, UTF-16 nor cp1252 ({error}): {MEND}") from error
    return "cp1252"


def _known(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        "".encode(name)  # a codec of text, not of bytes
    except (LookupError, TypeError) as error:
        raise UserError(f"`data.source.encoding`: {encoding!r} is no encoding; such as utf-8 or cp1252") from error
    return "utf-8-sig" if name == "utf-8" else name


def find_delimiter(head: str, cut: bool, usual: str) -> str:
    """The delimiter with which each row has as many columns, two at least, as the header; the usual one before others.

    head: the text's beginning, `cut` off or whole. Where none fits: that which gives the header most columns.
    """
    tried = [usual, *(delimiter for delimiter in DELIMITERS if delimiter != usual)]
    widths = {delimiter: _columns(head, cut, delimiter) for delimiter in tried}
    fitting = [delimiter for delimiter in tried if widths[delimiter][1] and widths[delimiter][0] > 1]
    if usual in fitting:
        return usual
    return max(fitting or tried, key=lambda delimiter: widths[delimiter][0])


def _columns(head: str, cut: bool, delimiter: str) -> tuple[int, bool]:
    """Columns of the header, and whether all rows of the head have as many."""
    try:
        rows = [
            row for row in itertools.islice(csv.reader(io.StringIO(head, newline=""), delimiter=delimiter), 1000) if row
        ]
    except csv.Error:
        return 0, False
    if not rows:
        return 0, False
    width = len(rows[0])
    body = rows[1:-1] if cut else rows[1:]
    return width, all(len(row) == width or (len(row) > width and not any(row[width:])) for row in body)
