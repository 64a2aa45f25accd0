"""Types, ranges and values of config keys in words: for `ldm explain` and for what an error expected."""

from __future__ import annotations

import json
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from pipeline.schema.section import Section

WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
BOUNDS = (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"), ("exclusiveMaximum", "below"))


def kind_of(field: FieldInfo) -> str:
    """A field's type and range in words: "whole number, at least 1", "one of l1, l2"."""
    annotation: Any = field.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    schema = adapter.json_schema()
    for bound in field.metadata:  # of Field(gt=...): not part of the annotation
        for name, key in (("ge", "minimum"), ("gt", "exclusiveMinimum"), ("le", "maximum"), ("lt", "exclusiveMaximum")):
            if getattr(bound, name, None) is not None:
                places = [s for s in schema.get("anyOf", [schema]) if s.get("type") in ("integer", "number")]
                for place in places or [schema]:
                    place[key] = getattr(bound, name)
    return _words(schema)


def _words(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_words(part) for part in schema["anyOf"]))
    if "const" in schema:
        return as_yaml(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(as_yaml(value) for value in schema["enum"])
    if schema.get("type") == "array":
        parts = schema.get("prefixItems")
        if parts:
            return f"list of {len(parts)}: {', '.join(_words(part) for part in parts)}"
        return f"list of: {_words(schema.get('items', {}))}"
    if schema.get("type") == "object":
        return "mapping"
    bounds = [f"{words} {as_yaml(schema[key])}" for key, words in BOUNDS if key in schema]
    return ", ".join([WORDS.get(str(schema.get("type")), "any value"), *bounds])


def as_yaml(value: Any) -> str:
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    return value if isinstance(value, str) and value else json.dumps(value)


def sections_of(annotation: Any) -> list[type[Section]]:
    """The sections that a key may hold: one, several by `kind`, or none."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [s for a in get_args(annotation) for s in sections_of(a)] if get_origin(annotation) else []
