"""What a condition's value is as a row of a tensor: of a data set's column, of `--set`, of a slider.

options: of one condition, as a model has them: {kind, values or range} of an attribute, {tokens, encoder} of the
caption. What the rows mean is in `models/conditioning/`; how those of a data set lie on disk in `condition_shards.py`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.data import caption_shards
from pipeline.data.captions import cleaned, cut, symbols

Array = np.ndarray[Any, np.dtype[Any]]
Options = Mapping[str, Any]


def number(value: Any, bounds: Sequence[float]) -> float | None:
    """A number that is in the range, or None where there is none. ValueError for another one, and for what is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is no number") from None
    if math.isnan(found):
        return None
    if not bounds[0] <= found <= bounds[1]:
        raise ValueError(f"{found:g} is not in the range from {bounds[0]:g} to {bounds[1]:g}")
    return found


def label(value: Any) -> str | None:
    """A categorical value as text, None where there is none."""
    text = "" if value is None else cleaned(str(value))
    return text or None


def labels(value: Any, separator: str = ",") -> list[str] | None:
    """The labels of a list, or of a text with a separator; None where there is none. An empty list is no label."""
    if isinstance(value, (list, tuple)):
        return [text for v in value if (text := label(v))]
    text = label(value)
    return None if text is None else [part for piece in text.split(separator) if (part := cleaned(piece))]


def row(name: str, options: Options, value: Any) -> Any:
    """One value as the tensor's row: int64, float32, or an array [k]. ValueError, naming it, for one that does not fit.

    None is what is not told.
    """
    try:
        if options["kind"] == "continuous":
            found, (low, high) = number(value, options["range"]), options["range"]
            return np.float32(-1.0 if found is None else (found - low) / (high - low))
        places = {text: i for i, text in enumerate(options["values"])}
        if options["kind"] == "categorical":
            text = label(value)
            return np.int64(len(places) if text is None else _place(text, places))
        chosen = labels(value, options.get("separator", ","))
        held = np.full(len(places), -1.0 if chosen is None else 0.0, np.float32)
        held[[_place(text, places) for text in chosen or ()]] = 1.0
        return held
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def caption_row(options: Options, text: str | None) -> Array:
    """A prompt as int64 [tokens], for an encoder that was trained; none is the empty one. ValueError for one that is
    longer than the model reads."""
    limit, given = options["tokens"] - 1, cleaned(text or "")
    size = len(given.encode("utf-8", "replace"))
    if size > limit:
        raise ValueError(f"a prompt of {size:,} bytes ({given[:20]}...), and the model reads {limit}; shorten it")
    return symbols(np.frombuffer(cut(given, limit), np.uint8), options["tokens"])


def null_rows(attributes: Mapping[str, Options], caption: Options | None) -> dict[str, Any]:
    """The row of each condition that is not told."""
    rows: dict[str, Any] = {name: row(name, options, None) for name, options in attributes.items()}
    if caption and "empty" in caption:
        return {**rows, **caption_shards.rows(caption, None)}
    return {**rows, **({"caption": caption_row(caption, "")} if caption else {})}


def _place(text: str, places: Mapping[str, int]) -> int:
    if text in places:
        return places[text]
    near = difflib.get_close_matches(text, places, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    shown = ", ".join(list(places)[:12]) + (", ..." if len(places) > 12 else "")
    raise ValueError(f"no value {text!r}; {guess}there are {shown}")
