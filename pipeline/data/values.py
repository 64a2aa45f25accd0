"""Values of tables as JSON and every encoder take them: no NaN, no infinity, no half characters; dates as text."""

from __future__ import annotations

import math
import re
from collections import Counter
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from pipeline.errors import UserError

HALF = re.compile("[\ud800-\udfff]")  # half of a pair of UTF-16, as text that was cut has it: no encoder takes it
MARK = "\N{REPLACEMENT CHARACTER}"


def whole_text(text: str) -> str:
    """Text with U+FFFD in place of half characters."""
    return HALF.sub(MARK, text)


def text_of(value: Any) -> str | list[str] | None:
    """A caption: any value as text, None for an empty one; of a list all that are not empty, None where none is."""
    if isinstance(value, list):
        return [str(text) for text in value if text is not None and text != ""] or None
    return None if value is None or value == "" else str(value)


class Values:
    """Makes a row's values fit for JSON, and counts what it had to do."""

    def __init__(self) -> None:
        self._did: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def __call__(self, value: Any, column: str, where: str) -> Any:
        """NaN becomes null, half a character U+FFFD. `where`: file and line. UserError for infinity."""
        if isinstance(value, str):
            mended = whole_text(value)
            self._count("halves", mended != value, column, where)
            return mended
        if isinstance(value, float):
            if math.isinf(value):
                raise UserError(
                    f"{where}: column {column!r} holds infinity, which JSON has no number for: write null or a number"
                )
            self._count("nan", math.isnan(value), column, where)
            return None if math.isnan(value) else value
        if isinstance(value, dict):
            return {whole_text(str(key)): self(inner, column, where) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(inner, column, where) for inner in value]
        if isinstance(value, (datetime, date, time)):
            return value.isoformat()
        return str(value) if isinstance(value, (timedelta, Decimal)) else value

    def _count(self, what: str, did: bool, column: str, where: str) -> None:
        if did:
            self._did[what] += 1
            self._first.setdefault(what, f"{where}, column {column!r}")

    def notes(self) -> list[str]:
        """What was done, each in a line."""
        told = {
            "nan": "values that are not numbers (NaN) are kept as null",
            "halves": "texts held half a character; U+FFFD stands in its place",
        }
        return [f"{self._did[w]:,} {text} (the first: {self._first[w]})" for w, text in told.items() if self._did[w]]
