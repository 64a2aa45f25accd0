"""Turns a batch's conditions (class labels; text and attributes later) into what a backbone takes: vectors and tokens.

Each conditioner knows its null condition, which guidance needs. Dropping conditions in training happens in the loader:
a dropped label arrives as the null label.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

Conditions = dict[str, Tensor]  # name -> one row a sample, e.g. {"class": int64 [n]}


class Embedded(NamedTuple):
    """An embedded condition. A NamedTuple, because ZeRO-3's hooks look for tensors in tuples only."""

    vector: Tensor  # [n, D], added to the embedding of the time
    tokens: Tensor | None = None  # [n, T, D], for backbones that attend to them


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


class ClassCondition(nn.Module):
    """A learned vector a class; the null class is one more row, at index `classes`."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes: expected at least 1, got {classes}")
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, condition: Conditions, x: Tensor) -> Embedded:
        """condition["class"] int64 [n] in [0, classes] -> vector [n, width]."""
        return Embedded(self.table(condition["class"]))

    def null(self, n: int, device: torch.device | str = "cpu") -> Conditions:
        """The null class, for n samples."""
        return {"class": torch.full((n,), self.classes, dtype=torch.int64, device=device)}


Conditioner = NoCondition | ClassCondition


def build(kind: str, width: int, classes: int = 0) -> Conditioner:
    """kind "none" or "class" -> the conditioner that gives vectors of `width`."""
    if kind == "none":
        return NoCondition(width)
    if kind == "class":
        return ClassCondition(classes, width)
    raise ValueError(f"condition.kind: expected 'none' or 'class', got {kind!r}")
