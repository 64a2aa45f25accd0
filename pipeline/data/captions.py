"""Captions as text, and as symbols for an encoder that is trained; which is `models/conditioning/text.py`."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np

from pipeline.data.values import whole_text

Array = np.ndarray[Any, np.dtype[Any]]


def cleaned(text: str) -> str:
    """One line of composed characters (NFC), runs of blanks as one, no control characters, none at the ends; U+FFFD in
    place of half characters."""
    printed = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in whole_text(text))
    return " ".join(unicodedata.normalize("NFC", printed).split())


def captions_of(value: Any) -> list[str]:
    """The captions of a sample, from the value that its source has: a text, several in a list, or none."""
    several = value if isinstance(value, (list, tuple)) else [value]
    return [text for v in several if v is not None and (text := cleaned(str(v)))]


def cut(text: str, limit: int) -> bytes:
    """The first bytes of a text as UTF-8, at most `limit`, no character in part."""
    encoded = text.encode("utf-8", "replace")
    return encoded if len(encoded) <= limit else encoded[:limit].decode("utf-8", "ignore").encode()


def symbols(content: Array, tokens: int) -> Array:
    """Bytes uint8 [m] as int64 [tokens]: BEGIN, each byte and 1, then PADDING."""
    from models.conditioning.text import BEGIN

    row = np.zeros(tokens, np.int64)
    row[0] = BEGIN
    row[1 : 1 + len(content)] = content.astype(np.int64) + 1
    return row
