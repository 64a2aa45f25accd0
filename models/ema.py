"""Averages of weights: exponential, by half-life in samples, and power functions of the time, by relative length.

Both go by samples: the batch size may change, the memory does not. Which tensors are averaged (whole parameters, or the
shards a rank owns) is the caller's business. Power functions are those of Karras et al. 2023, "Analyzing and improving
the training dynamics of diffusion models" (https://arxiv.org/abs/2312.02696, section 3, EDM2): from a few stored
averages of two lengths the average of any other length is made after training (`fit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.float64]]

LONGEST = 12**-0.5  # relative length of the plain mean of the whole training
POINTS = 4096  # moments of training at which `fit` compares profiles


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


# ---- power functions -------------------------------------------------------------------------------------------------


def exponent(length: float) -> float:
    """gamma of the profile tau^gamma over (0, t] whose standard deviation is `length` * t (EDM2, algorithm 2).

    length: in (0, 12^-1/2): gamma falls from infinity to 0, the plain mean.
    """
    if not 0 < length < LONGEST:
        raise ValueError(f"length: expected a share of the training in (0, {LONGEST:.4f}), got {length}")
    s = length**-2
    # length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), as a polynomial in gamma; its one positive root
    return float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max())


def power_decay(batch: int, samples: int, length: float) -> float:
    """Share that the average keeps in the step that brings it to `samples`: 0 in the first (EDM2, eq. 2)."""
    if not 0 < batch <= samples:
        raise ValueError(f"batch and samples: expected 0 < batch <= samples, got {batch} and {samples}")
    # beta(t) = (1 - dt/t)^(gamma + 1). Over steps it telescopes: weights that are current during (a, b] of (0, t] have
    # the share (b/t)^(gamma + 1) - (a/t)^(gamma + 1), which is the integral of the profile, exactly.
    return float((1 - batch / samples) ** (exponent(length) + 1))


def fit(samples: Array, lengths: Array, end: int, length: float, batch: int) -> tuple[Array, float]:
    """How much of each stored average makes the average of another `length` at `end`: (x [n], misfit).

    samples, lengths [n]: when the stored averages were taken, and of which lengths. end: samples, at most the last of
    them. batch: samples a step. The sum of x is 1. misfit: the largest share of the wanted average that is taken from
    the wrong side of a moment of training; 0 is exact.

    EDM2 (algorithm 3) minimises |sum_i x_i p_i - p|^2 of the profiles p. Here it is the same of their integrals P, the
    shares of the average that are older than tau: by parts, the error of the weights is the integral of
    (sum_i x_i P_i - P) d(theta), small where training moves slowly, and nothing is left at both ends.
    """
    steps = np.unique(np.linspace(1, end // batch, min(POINTS, end // batch)).round())
    tau = steps[:, None] * batch  # [m, 1]
    powers = np.array([exponent(value) + 1 for value in lengths])
    stored = np.minimum(tau / samples, 1.0) ** powers  # P_i(tau) = min(tau / t_i, 1)^(gamma_i + 1): [m, n]
    wanted = np.minimum(tau[:, 0] / end, 1.0) ** (exponent(length) + 1)  # [m]
    first = int(np.abs(stored - wanted[:, None]).max(0).argmin())  # the nearest; x = that one + y (others - that one)
    rest = np.delete(np.arange(len(powers)), first)
    y = np.linalg.lstsq(
        stored[:, rest] - stored[:, [first]], wanted - stored[:, first], rcond=1e-8
    )[0]  # fmt: skip
    x = np.zeros(len(powers))
    x[rest], x[first] = y, 1 - y.sum()
    return x, float(np.abs(stored @ x - wanted).max())
