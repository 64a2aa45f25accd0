"""The mark of images that a model made, as `ldm augment` sets it: `"generated": true` in a sample's JSON, or true in
the column `generated` of a table.

Such images are for training alone: `held_out.py` holds none of them out, and what figures stand on (`split.py`, judges)
is without them. Data without the mark are indexed and split as if there were none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MARK = "generated"


def marked(known: Mapping[str, Any]) -> bool:
    """Whether an image's columns say that a model made it: true itself, no text and no number."""
    return known.get(MARK) is True


def may_be_marked(content: bytes) -> bool:
    """Whether a sample's JSON is worth reading for the mark."""
    return f'"{MARK}"'.encode() in content
