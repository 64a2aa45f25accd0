"""Attributes that are a number, or a set of labels. One value of several is `labels.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.conditioning.embedded import Conditions, Embedded
from models.layers import time_features

NULL = -1.0  # of a number in [0, 1], and of each label's 0 or 1: not told, or not known
FEATURES = 64


class Continuous(nn.Module):
    """A number in [0, 1]: cosines and sines of it as of the time, two linear layers; a learned vector where it is not
    told. Begins as zero, so that a network that did not know the attribute stays what it was.
    """

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name = name
        self.up = nn.Linear(FEATURES, width)
        self.down = nn.Linear(width, width)
        self.untold = nn.Embedding(1, width)
        for values in (self.down.weight, self.down.bias, self.untold.weight):
            nn.init.zeros_(values)

    def forward(self, condition: Conditions, x: Tensor) -> Embedded:
        """condition[name] float32 [n] in [0, 1], or NULL -> vector [n, width]."""
        value = condition[self.name].float()
        told = (value >= 0).to(value.dtype)[:, None]  # [n, 1]
        known = self.down(F.silu(self.up(time_features(value.clamp(0, 1), FEATURES))))  # [n, width]
        return Embedded(told * known + (1 - told) * self.untold.weight)

    def null(self, n: int, device: torch.device | str = "cpu") -> Conditions:
        """No number, for n samples."""
        return {self.name: torch.full((n,), NULL, device=device)}


class MultiLabel(nn.Module):
    """Any number of labels of a list: the sum of their learned vectors; another vector where they are not told.
    Begins as zero.
    """

    def __init__(self, name: str, labels: int, width: int) -> None:
        super().__init__()
        self.name, self.labels = name, labels
        self.table = nn.Linear(labels, width, bias=False)
        self.untold = nn.Embedding(1, width)
        nn.init.zeros_(self.table.weight)
        nn.init.zeros_(self.untold.weight)

    def forward(self, condition: Conditions, x: Tensor) -> Embedded:
        """condition[name] float32 [n, labels], 1 for a label that is there and 0 for one that is not, or all NULL ->
        vector [n, width]."""
        given = condition[self.name].float()
        told = (given[:, :1] >= 0).to(given.dtype)  # [n, 1]
        return Embedded(told * self.table(given.clamp(0, 1)) + (1 - told) * self.untold.weight)

    def null(self, n: int, device: torch.device | str = "cpu") -> Conditions:
        """No labels told, for n samples: not the same as none of them."""
        return {self.name: torch.full((n, self.labels), NULL, device=device)}
