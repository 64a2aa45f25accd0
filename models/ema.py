"""Exponential moving averages of weights, by half-life in samples: the batch size may change, the memory does not.

Which tensors are averaged (whole parameters, or the shards a rank owns) is the caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def decay(batch: int, half_life: float) -> float:
    """Share of the average that one step of `batch` samples keeps: after `half_life` samples it is one half."""
    if batch <= 0 or half_life <= 0:
        raise ValueError(f"batch and half_life: expected samples > 0, got {batch} and {half_life}")
    return float(0.5 ** (batch / half_life))


@torch.no_grad()
def update(averages: Sequence[Tensor], live: Sequence[Tensor], keep: float) -> None:
    """average <- keep * average + (1 - keep) * live, in place; averages are float32, live of any floating type."""
    if not averages:
        return
    # As a lerp, average + (1 - keep) * (live - average): a weight that stands still leaves its average bit-equal.
    torch._foreach_lerp_(list(averages), [w.to(a.dtype) for a, w in zip(averages, live, strict=True)], 1.0 - keep)
