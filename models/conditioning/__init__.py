"""Turns a batch's named conditions into what a backbone takes: a vector and tokens. A file a kind of condition.

Each conditioner knows its null condition, which guidance needs. Withholding conditions in training happens in the
loader: a class that is withheld arrives as the null class, a caption as the empty one. How a value of a data set
becomes a row of a tensor is left to `pipeline/data/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.conditioning.attributes import Continuous, MultiLabel
from models.conditioning.embedded import Conditions, Embedded
from models.conditioning.labels import ClassCondition
from models.conditioning.text import Bytes, Embeddings

__all__ = ["Conditions", "Embedded", "build"]


class NoCondition(nn.Module):
    """Unconditional: a zero vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, condition: Conditions, x: Tensor) -> Embedded:
        """x [n, ...] gives count and device -> vector [n, width]."""
        return Embedded(torch.zeros(x.shape[0], self.width, device=x.device))

    def null(self, n: int, device: torch.device | str = "cpu") -> Conditions:
        """The condition that says nothing, for n samples."""
        return {}


class Several(nn.Module):
    """Conditions side by side: their vectors are added; tokens are those of the caption."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        # ModuleDict refuses names that it has itself ("type", "keys"), which columns have as well
        self.parts = nn.ModuleDict({f"of_{name}": part for name, part in parts.items()})

    def forward(self, condition: Conditions, x: Tensor) -> Embedded:
        """The conditions of all parts -> vector [n, width], and tokens with their mask where there is a caption."""
        found = [part(condition, x) for part in self.parts.values()]
        tokens, mask = next(((e.tokens, e.mask) for e in found if e.tokens is not None), (None, None))
        return Embedded(torch.stack([e.vector for e in found]).sum(0), tokens, mask)

    def null(self, n: int, device: torch.device | str = "cpu") -> Conditions:
        """No condition told, for n samples."""
        parts: list[Any] = list(self.parts.values())
        return {name: value for part in parts for name, value in part.null(n, device).items()}


Conditioner = NoCondition | ClassCondition | Several


def build(
    kind: str,
    width: int,
    classes: int = 0,
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    caption: Mapping[str, Any] | None = None,
) -> Conditioner:
    """The conditioner that gives vectors, and tokens, of `width`.

    kind: "class" where the model is told the class, else "none". attributes: by name {kind: "categorical",
    "multi_label" (with `values`, all that there are) or "continuous"}. caption: {tokens, encoder: {kind: "trained",
    width, depth, heads}}, or of another kind, which was run before: {kind, width}.
    Parts are made in this order, whatever the mapping's: class, attributes by name, caption.
    """
    if kind not in ("none", "class"):
        raise ValueError(f"condition.kind: expected 'none' or 'class', got {kind!r}")
    parts: dict[str, nn.Module] = {"class": ClassCondition(classes, width)} if kind == "class" else {}
    for name, options in sorted((attributes or {}).items()):
        if options["kind"] == "continuous":
            parts[name] = Continuous(name, width)
        elif options["kind"] == "multi_label":
            parts[name] = MultiLabel(name, len(options["values"]), width)
        else:
            parts[name] = table = ClassCondition(len(options["values"]), width, name)
            nn.init.zeros_(table.table.weight)  # begins as no condition
    if caption:
        own = {key: value for key, value in caption["encoder"].items() if key != "kind"}
        trained = caption["encoder"]["kind"] == "trained"
        parts["caption"] = Bytes(caption["tokens"], width, **own) if trained else Embeddings(own["width"], width)
    if not parts:
        return NoCondition(width)
    only = next(iter(parts.values()))
    return only if list(parts) == ["class"] and isinstance(only, ClassCondition) else Several(parts)
