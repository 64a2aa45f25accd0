"""Samplers: pure functions from noise to x0 over a denoiser and a grid of times. No network, no randomness here.

All walk the probability flow of the path (Song et al. 2021, section 4.3), where x0 = denoise(x, t) is the expected
data:

    eps = (x - alpha x0) / sigma            dx/dt = alpha' x0 + sigma' eps = speed (a x0 + b eps)

Arguments: denoise (x, t, condition) -> x0; x [n, ...] at times[0]; times float64 [steps + 1], falling, times[-1]
usually 0; condition as the denoiser takes it. All three return x at times[-1], in the dtype of x. t reaches the
denoiser as [n].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from models.conditioning import Conditions
from models.diffusion.denoiser import Denoiser
from models.diffusion.process import Path

Sampler = Callable[[Denoiser, Path, Tensor, Tensor, Conditions], Tensor]


def time_grid(steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """`steps` equal steps from `start` (see `denoiser.start_time`) down to `end`: float64 [steps + 1]."""
    if steps < 1 or not 0.0 <= end < start <= 1.0:
        raise ValueError(f"time grid: expected steps >= 1 and 0 <= end < start <= 1, got {steps}, {start}, {end}")
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def _noise(path: Path, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """eps = (x - alpha x0) / sigma; t is 0-dimensional and not 0."""
    return (x - path.alpha(t) * x0) / path.sigma(t)


def _slope(denoise: Denoiser, path: Path, x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
    """dx/dt = speed (a x0 + b eps)."""
    x0 = denoise(x, x.new_full((x.shape[0],), float(t)), condition)
    a, b = path.direction(t)
    return path.speed(t) * (a * x0 + b * _noise(path, x, x0, t))


def euler(denoise: Denoiser, path: Path, x: Tensor, times: Tensor, condition: Conditions) -> Tensor:
    """Euler's method, first order, one evaluation a step; on the straight path, the usual rectified flow sampler."""
    for t, s in itertools.pairwise(times):
        x = x + (s - t) * _slope(denoise, path, x, t, condition)  # x_s = x_t + (s - t) dx/dt
    return x


def heun(denoise: Denoiser, path: Path, x: Tensor, times: Tensor, condition: Conditions) -> Tensor:
    """Heun's method, second order, two evaluations a step, one in a step that ends at t = 0 (Karras et al. 2022,
    algorithm 1).
    """
    for t, s in itertools.pairwise(times):
        slope = _slope(denoise, path, x, t, condition)
        guess = x + (s - t) * slope
        if s > 0:  # at t = 0, sigma = 0 and the slope is not defined; one Euler step there keeps second order
            slope = 0.5 * (slope + _slope(denoise, path, guess, s, condition))
            guess = x + (s - t) * slope  # x_s = x_t + (s - t) (slope at t + slope at s) / 2
        x = guess
    return x


def ddim(denoise: Denoiser, path: Path, x: Tensor, times: Tensor, condition: Conditions) -> Tensor:
    """DDIM with eta = 0, first order, one evaluation a step (Song, Meng and Ermon 2021, equation 12).

    It is exact where x0 and eps do not change along the walk, whatever the path; on the straight path it equals Euler.
    """
    for t, s in itertools.pairwise(times):
        x0 = denoise(x, x.new_full((x.shape[0],), float(t)), condition)
        x = path.alpha(s) * x0 + path.sigma(s) * _noise(path, x, x0, t)  # x_s = alpha_s x0 + sigma_s eps
    return x


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "euler": euler, "heun": heun}
