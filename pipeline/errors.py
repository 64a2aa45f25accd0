"""Exceptions that end a command: a user's mistake (one line, exit code 2), a notice (exit code 75); words of lines, and
what of a text that others wrote a terminal may have."""

from __future__ import annotations

import unicodedata
from collections import Counter

# of Unicode's bidirectional algorithm (UAX 9): embeddings, overrides and isolates, which reorder what is around them
BIDIRECTIONAL = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


class UserError(Exception):
    """What is wrong, where, what was expected, what to do: in one line."""


class Notice(KeyboardInterrupt):
    """The machines go away: what is to be saved is saved, and the same command is to be given again elsewhere."""


def brief(error: BaseException) -> str:
    """An exception in one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def for_terminal(text: str) -> str:
    """Text of a model, of data or of a file's name as a terminal may have it: without control characters (C0, C1, and
    so escape sequences) but tabs and ends of lines, and without what turns the order of other text. Files keep it all.
    """
    kept = (c for c in text if c in "\n\t" or (unicodedata.category(c) != "Cc" and ord(c) not in BIDIRECTIONAL))
    return "".join(kept)


def many(number: int, one: str, several: str = "") -> str:
    """A count in words: "1 image", "1,200 images"; several: the plural where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def by_reason(counts: Counter[str]) -> str:
    """Counts in words, the most first: "1,200 truncated, 3 silent"; what is counted as 0 is left out."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common() if count)
