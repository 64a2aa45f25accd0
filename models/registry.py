"""Finds model kinds by file name: `models/<family>/<kind>.py` is the kind, there is no list to edit.

Such a file defines `Config` (a frozen dataclass of plain values) and `Model(config, **context)` (an nn.Module), and may
define `PRESETS`, a dict from a name to the fields it sets. What the context holds is the family's business (see each
package).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def later(default: Any) -> Any:
    """A field of a `Config` that came after models were trained without it: at its default it is no part of what
    `resolve` gives, so that the fingerprints of these stay what they are.
    """
    return dataclasses.field(default=default, metadata={"later": True})


def kinds(family: str) -> list[str]:
    """Names of the kinds of a family (`autoencoders`, `backbones`), sorted; reads the folder anew at each call."""
    package = importlib.import_module(f"models.{family}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def nearest(word: str, names: Iterable[str]) -> str:
    """The end of an error message: the valid name closest to `word`, then all of them (at most 20)."""
    names = sorted(names)
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.4)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}valid: {', '.join(names[:20])}" + (", ..." if len(names) > 20 else "")


def module(family: str, kind: str) -> types.ModuleType:
    """The module of a kind. ValueError if there is no such file, or it lacks `Config` or `Model`."""
    if kind not in kinds(family):
        raise ValueError(f"kind: no {family} kind {kind!r}; {nearest(kind, kinds(family))}")
    name = f"models.{family}.{kind}"
    if name not in sys.modules:
        importlib.invalidate_caches()  # the file may have been dropped in after the folder was first looked at
    found = importlib.import_module(name)
    for needed in ("Config", "Model"):
        if not hasattr(found, needed):
            raise ValueError(f"kind: models/{family}/{kind}.py defines no `{needed}`")
    return found


def config_class(family: str, kind: str) -> type[Any]:
    """The `Config` dataclass of a kind."""
    return typing.cast("type[Any]", module(family, kind).Config)


def presets(family: str, kind: str) -> dict[str, dict[str, Any]]:
    """The presets of a kind: name -> the fields it sets; empty where the kind has none."""
    return dict(getattr(module(family, kind), "PRESETS", {}))


def make_config(family: str, options: Mapping[str, Any]) -> Any:
    """Options -> `Config`. `kind` picks the file, `preset` a row of its table, every other key overrides a field.

    ValueError names the field and the nearest valid name, or the type that was expected.
    """
    rest = dict(options)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str):
        raise ValueError(f"kind: expected a kind of {family}, got {kind!r}; valid: {', '.join(kinds(family))}")
    config_type = config_class(family, kind)
    preset = rest.pop("preset", None)
    table = presets(family, kind)
    if preset is not None and preset not in table:
        hint = nearest(preset, table) if table else "it has none"
        raise ValueError(f"preset: {kind} has no preset {preset!r}; {hint}")
    values = {**(table[preset] if preset is not None else {}), **rest}
    hints = typing.get_type_hints(config_type)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(config_type)}
    for name in values:
        if name not in fields:
            raise ValueError(f"{name}: {kind} has no such field; {nearest(name, [*fields, 'kind', 'preset'])}")
    return config_type(**{name: _checked(name, value, fields[name]) for name, value in values.items()})


def resolve(family: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with preset and defaults written out: `{"kind": ..., **fields}`, equal for equal models."""
    return written(options["kind"], make_config(family, options))


def written(kind: str, config: Any) -> dict[str, Any]:
    """A `Config` as options, `{"kind": ..., **fields}`; one that came `later` only where it is not at its default."""
    values = dataclasses.asdict(config)
    for field in dataclasses.fields(config):
        if field.metadata.get("later") and values[field.name] == field.default:
            del values[field.name]
    return {"kind": kind, **values}


def build(family: str, options: Mapping[str, Any], **context: Any) -> nn.Module:
    """The model that the options describe, initialised from torch's global generator."""
    config = make_config(family, options)
    return typing.cast(nn.Module, module(family, options["kind"]).Model(config, **context))


def outline(family: str, options: Mapping[str, Any], **context: Any) -> nn.Module:
    """The model without numbers: names and shapes only, on the meta device. Errors are those of `build`."""
    with torch.device("meta"), _NoNumbers():
        model = build(family, options, **context)
    return model.to("meta")


class _NoNumbers(TorchFunctionMode):
    """Fills no tensor; tables of positions, which are small, are made on the CPU: on the meta device torch draws and
    reckons by decompositions that import sympy, half a second of each command."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == nn.init.__name__:
            return kwargs.get("tensor", args[0] if args else None)
        if function is torch.arange:
            return torch.arange(*args, **{**kwargs, "device": "cpu"})
        return function(*args, **kwargs)


def checkpoint_activations(model: nn.Module, kind: str) -> None:
    """Make every part that has a flag `activation_checkpointing` recompute its activations in the backward pass.

    ValueError where no part has one: the kind does not offer it.
    """
    parts: list[Any] = [part for part in model.modules() if hasattr(part, "activation_checkpointing")]
    if not parts:
        raise ValueError(f"activation_checkpointing: the kind {kind!r} does not offer it")
    for part in parts:
        part.activation_checkpointing = True


def parameters(family: str, options: Mapping[str, Any], **context: Any) -> int:
    """Number of trainable parameters; nothing is allocated."""
    return sum(p.numel() for p in outline(family, options, **context).parameters() if p.requires_grad)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type. YAML has no tuples, and writes 4 for 4.0: these are converted, nothing else is."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if value is None and type(None) in typing.get_args(hint):
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        return tuple(_checked(f"{name}[{i}]", item, typing.get_args(hint)[0]) for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = typing.get_origin(hint) or hint
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ValueError(f"{name}: expected {getattr(hint, '__name__', hint)}, got {value!r}")
    return value
