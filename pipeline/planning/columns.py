"""Which column of a table is what: of images, of classes, of captions, of who or what is on several images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.data.own_split import COLUMN as SPLIT

IMAGE_WORDS = ("image", "file", "path", "filename", "file_name", "img")
LABEL_WORDS = ("label", "class", "category", "expression", "target", "species", "type", "kind", "genre", "style")
CAPTION_WORDS = ("caption", "text", "prompt", "description", "title", "alt", "name")
GROUP_WORDS = ("person", "subject", "patient", "identity", "individual", "user", "author", "artist", "video", "scene",
               "session", "sequence", "series", "group")  # fmt: skip


def cell(value: Any) -> str:
    """A value as text; nothing for what is no single value."""
    return "" if value is None or isinstance(value, (list, dict, bytes)) or value != value else str(value)


def first_text(value: Any) -> str:
    """The first text of a list; nothing for what is no list of texts."""
    return value[0] if isinstance(value, list) and value and isinstance(value[0], str) else ""


def named(
    values: Mapping[str, list[str]], firsts: Mapping[str, list[str]] | None = None
) -> tuple[dict[str, str], str | None]:
    """(the columns of `label` and `caption` where there are such, that of groups or None), by all rows' values; firsts:
    of columns of lists the first text, since there may be several captions."""
    label = _pick(values, LABEL_WORDS, is_label)
    group = _pick({c: v for c, v in values.items() if c != label}, GROUP_WORDS, is_group)
    known = {**(firsts or {}), **{c: v for c, v in values.items() if any(v)}}
    caption = _pick({c: v for c, v in known.items() if c not in (label, group)}, CAPTION_WORDS, is_caption)
    return {key: column for key, column in (("label", label), ("caption", caption)) if column}, group


def maybe_labels(values: Mapping[str, list[str]], named: Mapping[str, str], group: str | None) -> list[str]:
    """A line on columns that could be classes, where no name says that one is; none where there is nothing to say."""
    others = {c: v for c, v in values.items() if c not in (*named.values(), group, SPLIT)}
    if "label" in named or not (found := [c for c in others if is_label(others[c])]):
        return []
    counts = ", ".join(f"{c} ({len({v for v in others[c] if v}):,} values)" for c in found)
    return [
        f"no column's name says classes; by its values one could be: {counts}; write `data.source.label: {found[0]}`"
    ]


def _pick(values: Mapping[str, list[str]], words: Sequence[str], fits: Callable[[list[str]], bool]) -> str | None:
    """The column that fits and has the best name; for want of one of these names, none that merely fits."""
    fitting = [c for c in values if fits(values[c]) and _rank(c, words) < len(words)]
    return min(fitting, key=lambda c: _rank(c, words), default=None)


def _rank(column: str, words: Sequence[str]) -> int:
    parts = {column.lower(), *re.split(r"[^a-z]+", column.lower())}
    return next((place for place, word in enumerate(words) if word in parts), len(words))


def is_label(values: list[str]) -> bool:
    """Few distinct values, each on several rows."""
    distinct = len({v for v in values if v})
    return 2 <= distinct <= max(2, min(1000, len(values) // 5))


def is_group(values: list[str]) -> bool:
    """Values that come back, but too many to be classes."""
    distinct = len({v for v in values if v})
    return 10 <= distinct < 0.95 * len(values)


def is_caption(values: list[str]) -> bool:
    """Mostly different texts, of letters."""
    filled = [v for v in values if v]
    return len(set(filled)) > 0.3 * len(values) and sum(any(ch.isalpha() for ch in v) for v in filled) > len(filled) / 2
