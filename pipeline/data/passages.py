"""What a text is to models: cleaned (`clean`), and cut into passages of so many bytes at the ends of sentences.

A passage is a function of its text and the length alone. Tokens are `tokens.py`'s business, files `text_files.py`'s.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.data.index import Index

# an end of a sentence: a full stop or its like, what closes a quotation or bracket, and a blank; scripts of East Asia
# write none. A row of dots is gone through once, not from each of them
SENTENCE = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s)|[。！？]+[」』”’）]*""")
BLANK = re.compile(r"\s+")


def clean(text: str) -> str:
    """Text in Unicode's form NFC, without control characters, byte order marks and halves of characters, with one blank
    for each run of white space, none at the ends."""
    text = BLANK.sub(" ", text)  # of these some are control characters
    kept = (c for c in text if c != "\ufeff" and unicodedata.category(c) not in ("Cc", "Cs"))
    return BLANK.sub(" ", unicodedata.normalize("NFC", "".join(kept))).strip()


def passages(text: str, most: int) -> list[str]:
    """A cleaned text in pieces of at most `most` bytes (UTF-8), as few as whole sentences allow; a sentence that is
    longer is cut at a blank, a word that is longer between characters. Nothing is lost but the blanks between."""
    found: list[str] = []
    piece = ""
    for sentence in _sentences(text):
        if _length((piece + sentence).strip()) <= most:
            piece += sentence
            continue
        found.append(piece.strip())
        *whole, piece = _cut(sentence.strip(), most)
        found += whole
    return [passage for passage in (*found, piece.strip()) if passage]


def read_passage(index: Index, i: int) -> str:
    """Sample i of an ingested text. Raises UserError, naming shard and member, for one that is damaged."""
    try:
        return index.read(i).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{index.name(i)}: is no UTF-8 ({error}): restore the shard, or run ingest again (--rebuild ingest)"
        ) from None


def _sentences(text: str) -> list[str]:
    ends = [match.end() for match in SENTENCE.finditer(text)]
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]  # a blank is before, not behind


def _cut(sentence: str, most: int) -> list[str]:
    """A sentence in pieces of at most `most` bytes."""
    pieces, start, left = [], 0, _length(sentence)
    while left > most:
        head = sentence[start : start + most].encode()[:most].decode("utf-8", "ignore")  # of a cut character nothing
        blank = head.rfind(" ") if sentence[start + len(head)] != " " else len(head)
        end = start + (blank if blank > 0 else len(head))
        pieces.append(sentence[start:end].rstrip())
        while sentence[end : end + 1].isspace():
            end += 1
        start, left = end, left - _length(sentence[start:end])
    return [*pieces, sentence[start:]]


def _length(text: str) -> int:
    return len(text.encode())
