"""Turns a batch's named conditions into what a backbone takes: a vector, tokens, channels. A file a kind of condition.

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
from models.conditioning.embedded import GUESS, PLACES, Conditions, Embedded
from models.conditioning.labels import ClassCondition
from models.conditioning.spatial import Spatial, beside, width_of
from models.conditioning.text import Bytes, Embeddings

__all__ = ["GUESS", "PLACES", "Conditions", "Embedded", "beside", "build", "width_of"]


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
    """Conditions side by side: their vectors are added; tokens are those of the caption; maps lie behind each other."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        # ModuleDict refuses names that it has itself ("type", "keys"), which columns have as well
        self.parts = nn.ModuleDict({f"of_{name}": part for name, part in parts.items()})

    def forward(self, condition: Conditions, x: Tensor) -> Embedded:
        """The conditions of all parts -> vector [n, width], tokens with their mask where there is a caption, channels
        where there are maps."""
        found = [part(condition, x) for part in self.parts.values()]
        tokens, mask = next(((e.tokens, e.mask) for e in found if e.tokens is not None), (None, None))
        maps = [e.channels for e in found if e.channels is not None]
        channels = torch.cat(maps, dim=1) if maps else None
        return Embedded(torch.stack([e.vector for e in found]).sum(0), tokens, mask, channels)

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
    spatial: Mapping[str, Mapping[str, Any]] | None = None,
) -> Conditioner:
    """The conditioner that gives vectors, and tokens, of `width`, and channels beside the latents.

    kind: "class" where the model is told the class, else "none". attributes: by name {kind: "categorical",
    "multi_label" (with `values`, all that there are) or "continuous"}. caption: {tokens, encoder: {kind: "trained",
    width, depth, heads}}, or of another kind, which was run before: {kind, width}. spatial: by name {channels, detail}.
    Parts are made in this order, whatever the mapping's: class, attributes by name, caption, spatial by name.
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
    for name, options in sorted((spatial or {}).items()):
        if name in parts:
            raise ValueError(f"condition.spatial: {name!r} is the name of another condition; give another one")
        parts[name] = Spatial(name, width_of(options), width)
    if not parts:
        return NoCondition(width)
    only = next(iter(parts.values()))
    return only if list(parts) == ["class"] and isinstance(only, ClassCondition) else Several(parts)
