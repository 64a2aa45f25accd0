"""The turns of a conversation as one text, of which a model of replies is told the end.

The same for training (`text_files.py`) and for a talk with a model (`applications/chat.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.data.captions import cleaned

BETWEEN = " // "  # two turns; inside a turn it becomes " / "
LONGEST = 16  # times `most`: characters of a turn that are looked at


def joined(turns: Sequence[str], most: int, size: Callable[[str], int] = lambda text: len(text.encode())) -> str:
    """As many of the last turns as there is room for, the oldest first; of one that is too long alone its end, from
    the beginning of a word on. Empty turns are none.

    most: bytes, or whatever `size` measures.
    """
    found = ""
    for turn in reversed(turns):
        if not (turn := _plain(turn[-LONGEST * most :])):
            continue
        longer = f"{turn}{BETWEEN}{found}" if found else turn
        if size(longer) > most:
            return found or _end(turn, most, size)
        found = longer
    return found


def _plain(turn: str) -> str:
    return " ".join("/" if word == BETWEEN.strip() else word for word in cleaned(turn).split())


def _end(turn: str, most: int, size: Callable[[str], int]) -> str:
    """The longest end of a turn that fits, of whole words; of one word of its characters."""
    words = turn.split()
    low, high = 0, len(words)  # words from the end: `low` of them fit, `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(" ".join(words[-middle:])) <= most else (low, middle)
    if low:
        return " ".join(words[-low:])
    letters = words[-1][-most:]
    while letters and size(letters) > most:
        letters = letters[1:]
    return letters
