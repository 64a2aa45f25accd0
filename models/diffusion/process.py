"""Paths from data to noise: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 the data and t = 1 the noise.

What a network predicts is in objectives.py, how one walks back in samplers.py. Every function of t keeps shape and
dtype of t; give it float32 or float64. The noise level of a time is sigma / alpha: two paths differ by the time at
which they have a level, and by a factor on x_t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.diffusion import steps
from models.diffusion.steps import Steps


class Path(Protocol):
    """What objectives and samplers need to know of a path.

    The velocity of a path is dx/dt = alpha'(t) x0 + sigma'(t) eps = speed(t) * (a x0 + b eps), (a, b) = direction(t),
    where speed = alpha sigma' - sigma alpha' and so alpha b - sigma a = 1: speed may grow without bound at an end,
    direction does not.
    """

    def alpha(self, t: Tensor) -> Tensor:
        """Share of the data, 1 at t = 0."""

    def sigma(self, t: Tensor) -> Tensor:
        """Share of the noise, 0 at t = 0."""

    def direction(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b), finite on [0, 1]."""

    def speed(self, t: Tensor) -> Tensor:
        """alpha sigma' - sigma alpha', positive."""

    def at(self, level: Tensor) -> Tensor:
        """The time t at which sigma / alpha is `level`, in [0, infinity]; 1 for more than the path reaches."""

    def scale(self, t: Tensor) -> Tensor:
        """The network is given scale * x: 1 where x stays about as large as the data."""

    def clock(self, t: Tensor) -> Tensor:
        """The time in [0, 1] that the network is told."""


class _Plain:
    """A path whose x goes to the network as it is, with t itself."""

    def scale(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def clock(self, t: Tensor) -> Tensor:
        """t."""
        return t


@dataclass(frozen=True)
class RectifiedFlow(_Plain):
    """The straight line: alpha = 1 - t, sigma = t (Liu et al. 2023; Lipman et al. 2023)."""

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1.0 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return t

    def direction(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(-1, 1): the velocity is eps - x0."""
        return -torch.ones_like(t), torch.ones_like(t)

    def speed(self, t: Tensor) -> Tensor:
        """(1 - t) * 1 - t * (-1) = 1."""
        return torch.ones_like(t)

    def at(self, level: Tensor) -> Tensor:
        """t / (1 - t) = level, so t = 1 / (1 + 1 / level): 0 and 1 at levels 0 and infinity."""
        return 1.0 / (1.0 + 1.0 / level)


SCHEDULES = ("linear", "cosine", "zero_terminal_snr")


@dataclass(frozen=True)
class VariancePreserving(_Plain):
    """alpha^2 + sigma^2 = 1, so alpha = cos(theta), sigma = sin(theta) for an angle theta(t).

    "linear": beta(t) = 0.1 + 19.9 t, alpha = exp(-1/2 integral beta), the limit of DDPM's steps (Ho et al. 2020) in
    continuous time (Song et al. 2021, appendix B). "cosine": theta = pi t / 2 (Nichol and Dhariwal 2021, without their
    offset, as Salimans and Ho 2022). "zero_terminal_snr": the linear alpha a, moved and stretched so that it ends at 0
    and still begins at 1, (a - a(1)) / (1 - a(1)) (Lin et al. 2024, algorithm 1).
    """

    schedule: str = "linear"
    BETA_MIN = 0.1
    BETA_MAX = 20.0
    LAST = math.exp(-0.25 * (BETA_MAX - BETA_MIN) - 0.5 * BETA_MIN)  # a(1) of the linear schedule, 0.0066

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            expected = ", ".join(repr(name) for name in (*SCHEDULES, *steps.SCHEDULES))
            raise ValueError(f"path.schedule: expected one of {expected}, got {self.schedule!r}")

    def _log_alpha(self, t: Tensor) -> Tensor:
        # log alpha = -1/2 integral_0^t beta(s) ds
        return -0.25 * (self.BETA_MAX - self.BETA_MIN) * t.square() - 0.5 * self.BETA_MIN * t

    def alpha(self, t: Tensor) -> Tensor:
        """cos(theta)."""
        if self.schedule == "cosine":
            return torch.sin(0.5 * math.pi * (1.0 - t))  # cos(pi t / 2), exactly 0 at t = 1
        if self.schedule == "zero_terminal_snr":  # log a(t) - log a(1) without cancellation near t = 1, exactly 0 there
            rest = (1.0 - t) * (0.25 * (self.BETA_MAX - self.BETA_MIN) * (1.0 + t) + 0.5 * self.BETA_MIN)
            return self.LAST * torch.expm1(rest) / (1.0 - self.LAST)
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        """sin(theta)."""
        if self.schedule == "cosine":
            return torch.sin(0.5 * math.pi * t)
        if self.schedule == "zero_terminal_snr":  # (1 - alpha)(1 + alpha), and 1 - alpha = (1 - a) / (1 - a(1))
            return torch.sqrt(-torch.expm1(self._log_alpha(t)) / (1.0 - self.LAST) * (1.0 + self.alpha(t)))
        return torch.sqrt(-torch.expm1(2.0 * self._log_alpha(t)))  # sqrt(1 - alpha^2) without cancellation near t = 0

    def direction(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(-sigma, alpha): velocity is theta' times v (Salimans and Ho 2022, appendix D)."""
        return -self.sigma(t), self.alpha(t)

    def speed(self, t: Tensor) -> Tensor:
        """theta'(t) = -alpha' / sigma. Linear: alpha' = -beta alpha / 2, hence beta alpha / (2 sigma), inf at t = 0."""
        if self.schedule == "cosine":
            return torch.full_like(t, 0.5 * math.pi)
        beta = self.BETA_MIN + (self.BETA_MAX - self.BETA_MIN) * t
        if self.schedule == "zero_terminal_snr":  # alpha' = a' / (1 - a(1))
            return 0.5 * beta * torch.exp(self._log_alpha(t)) / (1.0 - self.LAST) / self.sigma(t)
        return 0.5 * beta * self.alpha(t) / self.sigma(t)

    def at(self, level: Tensor) -> Tensor:
        """alpha = 1 / sqrt(1 + level^2); cosine: tan(pi t / 2) = level; else the root of log a(t) = -B, a parabola."""
        if self.schedule == "cosine":
            return torch.atan(level) * (2.0 / math.pi)
        b = 0.5 * torch.log1p(level.square())  # -log alpha
        if self.schedule == "zero_terminal_snr":
            b = -torch.log(torch.exp(-b) * (1.0 - self.LAST) + self.LAST)
        # (beta_1 - beta_0) / 4 t^2 + beta_0 / 2 t = B, solved without cancellation
        half, quarter = 0.5 * self.BETA_MIN, 0.25 * (self.BETA_MAX - self.BETA_MIN)
        b = b.clamp(max=half + quarter)  # what it comes to at t = 1
        return (2.0 * b / (half + torch.sqrt(half * half + 4.0 * quarter * b))).clamp(max=1.0)


@dataclass(frozen=True)
class EDM:
    """alpha = 1, sigma = 80 t: noise is added, data are never scaled down (Karras et al. 2022, where t is sigma).

    Normalised latents have deviation 1, the paper's sigma_data. It gives the network x / sqrt(sigma^2 + 1) (c_in) and
    log(sigma) / 4 (c_noise); here `scale` is c_in, and `clock` is log(sigma) brought from [log 0.002, log 80] to
    [0, 1]. Its c_skip and c_out follow from prediction "v" (see objectives.py).
    """

    SIGMA_MIN = 0.002
    SIGMA_MAX = 80.0

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """80 t."""
        return self.SIGMA_MAX * t

    def direction(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(0, 1): dx/dt = sigma' eps."""
        return torch.zeros_like(t), torch.ones_like(t)

    def speed(self, t: Tensor) -> Tensor:
        """sigma' = 80."""
        return torch.full_like(t, self.SIGMA_MAX)

    def at(self, level: Tensor) -> Tensor:
        """level / 80, at most 1."""
        return (level / self.SIGMA_MAX).clamp(max=1.0)

    def scale(self, t: Tensor) -> Tensor:
        """c_in = 1 / sqrt(alpha^2 + sigma^2)."""
        return torch.rsqrt(1.0 + self.sigma(t).square())

    def clock(self, t: Tensor) -> Tensor:
        """log(sigma / 0.002) / log(80 / 0.002), at least 0."""
        low = self.SIGMA_MIN
        return torch.log(self.sigma(t).clamp(min=low) / low) / math.log(self.SIGMA_MAX / low)


PATHS = ("rectified_flow", "variance_preserving", "edm")


def make_path(
    kind: str, schedule: str = "linear", betas: Sequence[float] = Steps.betas
) -> RectifiedFlow | VariancePreserving | Steps | EDM:
    """One of `PATHS` -> the path; `schedule` (one of `SCHEDULES`, or of steps.py, with its `betas`) is of
    "variance_preserving"."""
    if kind == "rectified_flow":
        return RectifiedFlow()
    if kind == "variance_preserving" and schedule in steps.SCHEDULES:
        return Steps(schedule, (betas[0], betas[1]))
    if kind == "variance_preserving":
        return VariancePreserving(schedule)
    if kind == "edm":
        return EDM()
    raise ValueError(f"path.kind: expected one of {', '.join(repr(name) for name in PATHS)}, got {kind!r}")


def log_snr(path: Path, t: Tensor) -> Tensor:
    """log(alpha^2 / sigma^2): infinite at t = 0, falling, minus infinity where alpha vanishes."""
    return 2.0 * (torch.log(path.alpha(t)) - torch.log(path.sigma(t)))


def noise_level(path: Path, t: Tensor) -> Tensor:
    """sigma / alpha, from 0 at t = 0; infinite where alpha vanishes."""
    return path.sigma(t) / path.alpha(t)


def like(t: Tensor, x: Tensor) -> Tensor:
    """t [n] -> [n, 1, ..., 1], to multiply x [n, ...]."""
    return t.reshape(-1, *[1] * (x.dim() - 1))


def add_noise(path: Path, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x0 + sigma(t) eps; x0, eps [n, ...], t [n]. Where x0 is float32 it is float32."""
    return like(path.alpha(t), x0) * x0 + like(path.sigma(t), x0) * eps
