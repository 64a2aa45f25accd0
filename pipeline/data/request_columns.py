"""Columns of a table that asks a model for images, an image a row: what the model that MLflow registers takes.

What a value may be is in `condition_values.py`; how the rows become a request is in `pipeline/generate/pyfunc.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABEL, PROMPT, NEGATIVE = "label", "prompt", "negative"
PREFIX = "attribute_"  # of an attribute that bears one of these names


def columns(condition: Mapping[str, Any]) -> dict[str, str]:
    """Column -> the form of its values: `long` (the class's number), `string` (several labels with their separator; of
    a column of lists MLflow would take {column: list} for one row), `double`.

    condition: as in a model's config.json. A model that is told nothing takes a `label` as well, which counts rows.
    """
    known = condition.get("attributes") or {}
    found = {
        attribute_column(name): "double" if own["kind"] == "continuous" else "string" for name, own in known.items()
    }
    if condition.get("caption"):
        found = {PROMPT: "string", NEGATIVE: "string", **found}
    return {LABEL: "long", **found} if condition["kind"] == "class" or not found else found


def attribute_column(name: str) -> str:
    """The column of an attribute: its name, where no other column has it."""
    return f"{PREFIX}{name}" if name in (LABEL, PROMPT, NEGATIVE) else name


def scales(condition: Mapping[str, Any]) -> dict[str, str]:
    """Parameter -> the condition whose guidance scale it is; none where the class is all that the model is told."""
    told = [*(condition.get("attributes") or {}), *(["caption"] if condition.get("caption") else [])]
    several = ["class", *told] if told and condition["kind"] == "class" else told
    return {f"scale_{name}": name for name in several}


def example(condition: Mapping[str, Any]) -> dict[str, Any]:
    """A value for each column but the negative prompt, of one row."""
    row: dict[str, Any] = {LABEL: 0} if LABEL in columns(condition) else {}
    if own := condition.get("caption"):
        row[PROMPT] = "a picture"[: own["tokens"] - 1]
    for name, own in (condition.get("attributes") or {}).items():
        first = own["values"][0] if own.get("values") else None
        value = sum(own["range"]) / 2 if own["kind"] == "continuous" else first
        row[attribute_column(name)] = value
    return row
