"""What each config key means, from the schema itself: sections and keys of `schema/`, options of `models/`.

Reads the source of models (the comment beside an option is its description), so that nothing heavy is imported.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import SOURCE
from pipeline.schema.section import SPEED, Section
from pipeline.schema.synonyms import meant
from pipeline.schema.words import as_yaml, kind_of, sections_of

FAMILIES = {"autoencoder.model": "autoencoders", "diffusion.backbone": "backbones"}  # key -> folder of models/
PLACES = ("run.name", "run.root")  # no part of any recipe
MODELS = SOURCE / "models"


@dataclass(frozen=True)
class Key:
    """One config key. type: in words, with its range. default: as YAML, None if it must be given. of: the `kind` that
    it belongs to, for keys that not every kind has."""

    name: str
    type: str
    default: str | None
    text: str
    of: str = ""
    speed: bool = False
    values: tuple[str, ...] = ()  # all valid values, where they are few

    def line(self) -> str:
        """The key in one line."""
        default = "must be given" if self.default is None else f"default {self.default}"
        return f"{self.name}{f' ({self.of})' if self.of else ''}: {self.text} [{self.type}; {default}]"

    def paragraph(self) -> str:
        """The key in full."""
        default = "none, it must be given" if self.default is None else self.default
        effect = "the result: another value is another artifact, and stages that depend on it run again"
        if self.name in PLACES:
            effect = "where a run is found, not its result"
        elif self.speed:
            effect = "how fast or how visibly it is computed, not the result: no part of a fingerprint"
        rows = [("meaning", self.text), ("values", self.type), ("default", default), ("changes", effect)]
        head = self.name + (f"   ({self.of})" if self.of else "")
        return "\n".join([head, *(f"  {name:<8} {value}" for name, value in rows if value)])


def explain(name: str | None = None) -> str:
    """The text for a key (in full), a section (a line a key), or a word (all keys that end in it or speak of it).

    Raises UserError with the nearest keys for what is none of these.
    """
    known = keys()
    name = name.strip("`") if name else name
    if not name:
        return "\n".join(f"{section}: {text}" for section, text in sections().items())
    exact = [key for key in known if key.name == name]
    inside = [key for key in known if key.name.startswith(f"{name}.")]
    if inside:
        title = [key.paragraph() for key in exact]
        text = sections().get(name)
        return "\n".join([*title, *([f"{name}: {text}"] if text and not exact else []), *(k.line() for k in inside)])
    if exact:
        text = "\n\n".join(key.paragraph() for key in exact)
        family = name.removesuffix(".preset")
        return f"{text}\n{presets(family)}" if name != family and family in FAMILIES else text
    ending = [key for key in known if key.name.endswith(f".{name}")]
    if len(ending) == 1:
        return ending[0].paragraph()
    speaking = [key for key in known if re.search(rf"\b{re.escape(name)}", f"{key.name} {key.text}", re.IGNORECASE)]
    targets = {} if ending else {key.name: key for key in known if key.name in meant(name, [k.name for k in known])}
    if targets:  # what other programs call it
        return "\n".join(key.line() for key in targets.values())
    if ending or (speaking and "." not in name):
        return "\n".join(key.line() for key in ending or speaking)
    names = sorted({key.name.rsplit(".", depth)[0] for key in known for depth in range(key.name.count(".") + 1)})
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    raise UserError(
        f"{name}: no such config key; "
        + (f"did you mean {' or '.join(near)}?" if near else f"sections: {', '.join(Config.model_fields)}")
    )


def sections() -> dict[str, str]:
    """The sections of a config, and the keys of each."""
    return {
        name: field.description
        or ", ".join(dict.fromkeys(key.name.split(".")[1] for key in keys() if key.name.startswith(f"{name}.")))
        for name, field in Config.model_fields.items()
    }


@lru_cache(maxsize=1)
def keys() -> tuple[Key, ...]:
    """All config keys, in the order of the schema, each with the options of its kinds."""
    return tuple(_of_section(Config, "", "", False))


def _of_section(section: type[Section], prefix: str, of: str, speed: bool) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        fast = speed or field.json_schema_extra == SPEED
        inner = sections_of(field.annotation)
        if inner and field.default is not PydanticUndefined and not isinstance(field.default, Section):
            listed = isinstance(field.default, tuple)  # a list of sections, or a section that may be left out
            kind = "list of mappings with the keys below" if listed else "mapping with the keys below, or null"
            yield Key(path, kind, _default(field), field.description or "", of, fast)
        if len(inner) == 1:
            yield from _of_section(inner[0], f"{path}.", of, fast)
        elif inner:  # a choice by `kind`
            kinds = tuple(str(get_args(each.model_fields["kind"].annotation)[0]) for each in inner)
            text = " ".join(f"{kind}: {(each.__doc__ or '').strip()}" for kind, each in zip(kinds, inner, strict=True))
            yield Key(f"{path}.kind", f"one of {', '.join(kinds)}", None, text, of, fast, kinds)
            for kind, each in zip(kinds, inner, strict=True):
                yield from (key for key in _of_section(each, f"{path}.", kind, fast) if key.name != f"{path}.kind")
        else:
            yield Key(path, kind_of(field), _default(field), field.description or "", of, fast, _values(field))
            if path in FAMILIES:
                yield from _of_models(path, FAMILIES[path])


def _default(field: FieldInfo) -> str | None:
    return None if field.default is PydanticUndefined else as_yaml(field.default)


def _values(field: FieldInfo) -> tuple[str, ...]:
    """All values of a choice or a flag."""
    if field.annotation is bool:
        return ("true", "false")
    options = [a for a in (field.annotation, *get_args(field.annotation)) if get_origin(a) is Literal]
    return tuple(as_yaml(value) for option in options for value in get_args(option))


# ---- options of models -----------------------------------------------------------------------------------------------


def _of_models(path: str, family: str) -> Iterator[Key]:
    """`kind`, `preset`, and the options of each kind: the fields of its `Config`, described by the comment beside."""
    files = sorted(f for f in (MODELS / family).glob("*.py") if not f.name.startswith("_"))
    kinds = tuple(file.stem for file in files)
    about = "; ".join(f"{file.stem}: {_headline(file)}" for file in files)
    yield Key(f"{path}.kind", f"one of {', '.join(kinds)}", None, about, "", False, kinds)
    with_presets = [file.stem for file in files if "\nPRESETS" in file.read_text()]
    if with_presets:
        text = (
            f"A row of a table of good values, which the other keys override; `ldm explain {path}.preset` lists them."
        )
        yield Key(f"{path}.preset", "text", "none", text, ", ".join(with_presets))
    for file in files:
        yield from _options(file, path)


def _headline(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0].replace("\n", " ")


def _options(file: Path, path: str) -> Iterator[Key]:
    text = file.read_text()
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    rest = lines[(item.end_lineno or item.lineno) - 1][item.end_col_offset :]
                    given = item.value
                    if isinstance(given, ast.Call):  # later(default), of models/registry.py
                        given = given.args[0]
                    default = None if given is None else ast.unparse(given).replace("'", "").replace(",)", ")")
                    default = default and default.replace("True", "true").replace("False", "false")
                    kind = _python_words(ast.unparse(item.annotation))
                    values = ("true", "false") if kind == "true or false" else ()
                    comment = rest.partition("#")[2].strip()
                    yield Key(f"{path}.{item.target.id}", kind, default, comment, file.stem, values=values)


def _python_words(hint: str) -> str:
    words = {"int": "whole number", "float": "number", "bool": "true or false", "str": "text", "None": "null"}
    listed = re.fullmatch(r"tuple\[(\w+), \.\.\.\]", hint)
    if listed:
        return f"list of: {words.get(listed[1], listed[1])}"
    return " or ".join(words.get(part.strip(), part.strip()) for part in hint.split("|"))


def presets(path: str) -> str:
    """The presets of `autoencoder.model` or `diffusion.backbone`, one a line. Imports the models (torch)."""
    from models import registry

    family, lines = FAMILIES[path], []
    for kind in registry.kinds(family):
        for name, values in registry.presets(family, kind).items():
            lines.append(f"  {kind} {name}: " + ", ".join(f"{key} {as_yaml(value)}" for key, value in values.items()))
    return "\n".join(lines)
