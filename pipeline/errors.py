"""The one exception that stands for a user's mistake. The command line prints it as one line and exits with 2."""

from __future__ import annotations


class UserError(Exception):
    """What is wrong, where, what was expected, what to do: in one line."""
