"""One value of several: a class, or a categorical attribute."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.conditioning.embedded import Conditions, Embedded


class ClassCondition(nn.Module):
    """A learned vector a class; the null class is one more row, at index `classes`: it stands for a class that is
    withheld and for one that is not known.
    """

    def __init__(self, classes: int, width: int, name: str = "class") -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes: expected at least 1, got {classes}")
        self.classes, self.name = classes, name
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, condition: Conditions, x: Tensor) -> Embedded:
        """condition[name] int64 [n] in [0, classes] -> vector [n, width]."""
        return Embedded(self.table(condition[self.name]))

    def null(self, n: int, device: torch.device | str = "cpu") -> Conditions:
        """The null class, for n samples."""
        return {self.name: torch.full((n,), self.classes, dtype=torch.int64, device=device)}
