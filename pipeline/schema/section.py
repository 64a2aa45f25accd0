"""What a section of the config is, and which of its keys change results.

A key marked SPEED changes how fast or how visibly something is computed, not what: it is no part of a fingerprint.
A key marked LATER came after artifacts were made without it: at its default it is no part of a fingerprint, so that
these stay found.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.files import expanded

SPEED: dict[str, Any] = {"changes_result": False}
LATER: dict[str, Any] = {"later": True}
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Place = Annotated[str, AfterValidator(expanded)]  # a path or pattern: `~` and `$VAR` are put in


class Section(BaseModel):
    """A frozen part of the config that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def result_fields(section: Section) -> dict[str, Any]:
    """The keys of a section that change results, as plain JSON values: what goes into a fingerprint."""
    kept: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if field.json_schema_extra == SPEED:
            continue
        value = getattr(section, name)
        if field.json_schema_extra == LATER and value == field.get_default(call_default_factory=True):
            continue
        kept[name] = result_fields(value) if isinstance(value, Section) else _plain(value)
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return result_fields(value)
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value
