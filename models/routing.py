"""Token routing: in training some tokens, drawn anew for each sample, go past some blocks unchanged.

Krause et al. 2025, "TREAD: Token Routing for Efficient Architecture-agnostic Diffusion Training", section 3: those
blocks cost less, and what comes back behind them is a short way for the gradient. Sampling and validation route
nothing. Which tokens go past is drawn by `pipeline/data/loader.py`; a backbone that takes a `Route` says so by a
parameter of its forward.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Route:
    """Which tokens of each sample the blocks from `first` up to (not with) `end` see.

    draws [n, T]: uniform numbers; the tokens with the smallest stay, all but `share` of them.
    """

    def __init__(self, draws: Tensor, share: float, first: int, end: int) -> None:
        tokens = draws.shape[1]
        stay = max(1, tokens - round(share * tokens))
        self.first, self.end = first, end
        self.stay = draws.argsort(dim=1)[:, :stay, None]  # [n, K, 1]

    def leave(self, h: Tensor) -> Tensor:
        """Tokens [n, T, D] -> those that stay [n, K, D]."""
        return torch.gather(h, 1, self.stay.expand(-1, -1, h.shape[-1]))

    def join(self, past: Tensor, h: Tensor) -> Tensor:
        """All tokens before the first block [n, T, D], those that stayed behind a block [n, K, D] -> [n, T, D]."""
        return torch.scatter(past, 1, self.stay.expand_as(h), h.to(past.dtype))

    def turned(self, rotation: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines [T, d / 2] of the places of all tokens -> of those that stay, [n, 1, K, d / 2]."""
        if rotation is None:
            return None
        cos, sin = (table[self.stay[:, None, :, 0]] for table in rotation)
        return cos, sin
