"""A prompt as a request holds it: a text, or several pieces that are composed ("a red hat AND wide eyes").

What guidance makes of pieces is in `sampling.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Prompt = str | list[str]  # pieces where there are several, or where one has the word AND in it and means it
AND = re.compile(r"\s+AND\s+")


def pieces(prompt: str | Sequence[str]) -> list[str]:
    """The pieces of a prompt, one at least: of a text those around the word AND in capitals; a list is its pieces."""
    if isinstance(prompt, str):
        found = AND.split(prompt.strip())
    else:  # what is neither is refused by who checks
        found = list(prompt) if isinstance(prompt, Sequence) else [prompt]
    return [piece for piece in found if piece] or [""]


def kept(several: Sequence[str]) -> Prompt:
    """Pieces as a request holds them, so that they are the same pieces when it comes back."""
    return several[0] if len(several) == 1 and pieces(several[0]) == list(several) else list(several)


def said(prompt: Prompt) -> str:
    """A prompt as people write it."""
    return prompt if isinstance(prompt, str) else " AND ".join(prompt)
