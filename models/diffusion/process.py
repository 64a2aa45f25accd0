"""Paths from data to noise: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 the data and t = 1 the noise.

What a network predicts is in objectives.py, how one walks back in samplers.py. Every function of t keeps shape and
dtype of t; give it float32 or float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


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


@dataclass(frozen=True)
class RectifiedFlow:
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


@dataclass(frozen=True)
class VariancePreserving:
    """alpha^2 + sigma^2 = 1, so alpha = cos(theta), sigma = sin(theta) for an angle theta(t).

    "linear": beta(t) = 0.1 + 19.9 t, alpha = exp(-1/2 integral beta), the limit of DDPM's steps (Ho et al. 2020) in
    continuous time (Song et al. 2021, appendix B). "cosine": theta = pi t / 2 (Nichol and Dhariwal 2021, without their
    offset, as Salimans and Ho 2022).
    """

    schedule: str = "linear"
    BETA_MIN = 0.1
    BETA_MAX = 20.0

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "cosine"):
            raise ValueError(f"path.schedule: expected 'linear' or 'cosine', got {self.schedule!r}")

    def _log_alpha(self, t: Tensor) -> Tensor:
        # log alpha = -1/2 integral_0^t beta(s) ds
        return -0.25 * (self.BETA_MAX - self.BETA_MIN) * t.square() - 0.5 * self.BETA_MIN * t

    def alpha(self, t: Tensor) -> Tensor:
        """cos(theta)."""
        if self.schedule == "cosine":
            return torch.sin(0.5 * math.pi * (1.0 - t))  # cos(pi t / 2), exactly 0 at t = 1
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        """sin(theta)."""
        if self.schedule == "cosine":
            return torch.sin(0.5 * math.pi * t)
        return torch.sqrt(-torch.expm1(2.0 * self._log_alpha(t)))  # sqrt(1 - alpha^2) without cancellation near t = 0

    def direction(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(-sigma, alpha): velocity is theta' times v (Salimans and Ho 2022, appendix D)."""
        return -self.sigma(t), self.alpha(t)

    def speed(self, t: Tensor) -> Tensor:
        """theta'(t). Linear: alpha' = -beta alpha / 2 = -theta' sigma, hence beta alpha / (2 sigma), inf at t = 0."""
        if self.schedule == "cosine":
            return torch.full_like(t, 0.5 * math.pi)
        beta = self.BETA_MIN + (self.BETA_MAX - self.BETA_MIN) * t
        return 0.5 * beta * self.alpha(t) / self.sigma(t)


def make_path(kind: str, schedule: str = "linear") -> RectifiedFlow | VariancePreserving:
    """kind "rectified_flow" or "variance_preserving" -> the path; `schedule` is the latter's."""
    if kind == "rectified_flow":
        return RectifiedFlow()
    if kind == "variance_preserving":
        return VariancePreserving(schedule)
    raise ValueError(f"path.kind: expected 'rectified_flow' or 'variance_preserving', got {kind!r}")


def log_snr(path: Path, t: Tensor) -> Tensor:
    """log(alpha^2 / sigma^2): infinite at t = 0, falling, minus infinity where alpha vanishes."""
    return 2.0 * (torch.log(path.alpha(t)) - torch.log(path.sigma(t)))


def like(t: Tensor, x: Tensor) -> Tensor:
    """t [n] -> [n, 1, ..., 1], to multiply x [n, ...]."""
    return t.reshape(-1, *[1] * (x.dim() - 1))


def add_noise(path: Path, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x0 + sigma(t) eps; x0, eps [n, ...], t [n]. Where x0 is float32 it is float32."""
    return like(path.alpha(t), x0) * x0 + like(path.sigma(t), x0) * eps
