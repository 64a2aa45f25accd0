"""A mistake in a config in one line: the place, the key, what was expected in the config's own words, what to write."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.schema.section import Section
from pipeline.schema.synonyms import BY_WORD, meant, squeezed
from pipeline.schema.words import kind_of, sections_of

Keys = tuple[Any, ...]  # a path of keys and places in lists
Found = tuple[Any, Keys, list[type[Section]], FieldInfo | None]  # pydantic's error, and what `_walk` makes of it
Lines = Mapping[Keys, str]  # where each is: a line, or "override `...`"


def explain(error: ValidationError, path: object, lines: Lines, top: type[Section]) -> str:
    """The first mistake in one line, with where it is; says how many more keys are wrong."""
    found: list[Found] = [(one, *_walk(one["loc"], top, lines)) for one in error.errors(include_url=False)]
    first, where, sections, field = _telling(found)
    key = ".".join(map(str, where)) or "the config"
    given = first["input"]
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool, list)) and len(repr(given)) < 80 else ""
    if first["type"] == "extra_forbidden":
        say = _unknown(where, sections, top)
    elif first["type"] == "missing" and not isinstance(where[-1], int):
        say = f"`{key}` is missing; add it"
    elif first["type"].startswith("union_tag"):
        kind = repr(given.get("kind")) if first["type"] == "union_tag_invalid" else "missing"
        say = f"`{key}.kind` is {kind}; expected one of {', '.join(str(_kind(section)) for section in sections)}"
    elif first["type"] == "value_error" or field is None:
        text = first["msg"].removeprefix("Value error, ")
        say = f"`{key}`: {text}{shown}" if where else text
    elif first["type"] == "string_pattern_mismatch":
        say = f"`{key}`: expected text that matches {first['ctx']['pattern']}{shown}"
    elif given is None:
        say = f"`{key}` is empty; expected {_expected(field, given)}"
    else:
        if first["type"] == "missing":  # a place in a list that is too short
            key = ".".join(map(str, where[:-1]))
        say = f"`{key}`: expected {_expected(field, given)}{shown or f' (given: a {_sort(given)})'}"
    more = len({keys for _, keys, _, _ in found} - {where})
    at = place(path, lines, where, say if first["type"] == "value_error" else "")
    return f"{at}: {say}" + (f" (and {more} more)" if more else "")


def place(path: object, lines: Lines, where: Keys, said: str = "") -> str:
    """FILE:LINE, or the override, of a mistake at `where`. One that is of a section as a whole is at a key that its
    message `said` names; best one that an override has set, since the file alone may have been right."""
    line = next((lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in lines), "1")
    if any(keys[: len(where)] == where and len(keys) > len(where) for keys in lines):  # a section
        named = [(*base, *word.split(".")) for word in re.findall(r"`([A-Za-z_][\w.]*)", said) for base in (where, ())]
        given = [lines[keys] for keys in named if keys in lines and len(keys) > len(where)]
        line = next((at for at in given if at.startswith("override")), given[0] if given else line)
    return line if line.startswith("override") else f"{path}:{line}"


def _telling(found: list[Found]) -> Found:
    """The first mistake; but if a key is missing where another is unknown, the unknown one, which is likely meant."""
    first, where = found[0][:2]
    if first["type"] == "missing":
        strange = (one for one in found if one[0]["type"] == "extra_forbidden" and one[1][:-1] == where[:-1])
        return next(strange, found[0])
    return found[0]


def _walk(loc: Keys, top: type[Section], lines: Lines) -> tuple[Keys, list[type[Section]], FieldInfo | None]:
    """Of pydantic's path: the keys that are a config's, the sections that the last one is in or holds, its field.

    pydantic puts a union's tags and the names of types between the keys.
    """
    sections, where, field = [top], [], None
    inside = False  # in what no section describes: a mapping's or list's own keys
    for i, key in enumerate(loc):
        last = i == len(loc) - 1
        fields = [f for s in sections for name, f in s.model_fields.items() if key in (name, f.alias)]
        if fields and not inside:
            field = fields[0]
            where.append(field.alias if key != field.alias and field.alias else key)
            inner = sections_of(field.annotation)
            if inner and (not last or len(inner) > 1):
                sections = inner
            elif not last:
                inside = True
        elif len(sections) > 1 and any(_kind(section) == key for section in sections):
            sections = [section for section in sections if _kind(section) == key]
        elif isinstance(key, int):
            where.append(key)
        elif last and (not inside or (*where, key) in lines):  # an unknown key of a section, or one of a mapping
            where.append(key)
            field = None
    return tuple(where), sections, field


def _kind(section: type[Section]) -> str | None:
    field = section.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field and get_args(field.annotation) else None


def _expected(field: FieldInfo, given: Any) -> str:
    sections = sections_of(field.annotation)
    if not sections:
        mapping = kind_of(field) == "mapping" and isinstance(given, str)
        return kind_of(field) + (f" such as {{kind: {given}}}" if mapping else "")
    if len(sections) > 1:
        return f"a section with `kind`, one of {', '.join(str(_kind(section)) for section in sections)}"
    names = [f.alias or name for name, f in sections[0].model_fields.items()]
    return f"a section with keys such as {', '.join(names[:6])}"


def _sort(value: Any) -> str:
    return "section" if isinstance(value, dict) else "list" if isinstance(value, list) else type(value).__name__


def _unknown(where: Keys, sections: list[type[Section]], top: type[Section]) -> str:
    key = ".".join(map(str, where))
    valid = sorted({f.alias or name for section in sections for name, f in section.model_fields.items()})
    word, names = str(where[-1]), list(dict.fromkeys(_names(top)))
    prefix = ".".join(str(k) for k in where[:-1] if not isinstance(k, int))
    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.6)
    full = ".".join(filter(None, (prefix, word)))
    others = [name for name in meant(full, names) if name != full][:3]  # full: of another `kind`
    direct = [name for name in others if name.rpartition(".")[0] == prefix and name.rpartition(".")[2] in valid]
    if direct and prefix:
        hint = f"did you mean `{direct[0].rpartition('.')[2]}`?"
    elif near and squeezed(word) not in BY_WORD:
        hint = f"did you mean `{near[0]}`?"
    elif others:
        hint = f"did you mean {' or '.join(f'`{name}`' for name in others)}?"
    else:
        kind = _kind(sections[0]) if len(sections) == 1 else None
        hint = (f"kind {kind} takes " if kind else "expected one of ") + ", ".join(valid)
    if word.lower().endswith(("epochs", "epoch")) and others:
        hint += " (steps: passes over the images x their number / `batch_size`)"
    return f"unknown key `{key}`; {hint}"


def _names(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Full names of all keys and sections."""
    for name, field in section.model_fields.items():
        full = f"{prefix}{field.alias or name}"
        yield full
        for inner in sections_of(field.annotation):
            yield from _names(inner, f"{full}.")
