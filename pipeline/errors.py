"""Exceptions that end a command: a user's mistake (one line, exit code 2), a notice (exit code 75). Words of lines."""

from __future__ import annotations


class UserError(Exception):
    """What is wrong, where, what was expected, what to do: in one line."""


class Notice(KeyboardInterrupt):
    """The machines go away: what is to be saved is saved, and the same command is to be given again elsewhere."""


def brief(error: BaseException) -> str:
    """An exception in one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def many(number: int, one: str, several: str = "") -> str:
    """A count in words: "1 image", "1,200 images"; several: the plural where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"
