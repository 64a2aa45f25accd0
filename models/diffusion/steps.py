"""The path of published models: DDPM's thousand steps, as a path in continuous time.

Ho et al. 2020 add noise in steps k = 0 ... 999 of variance beta_k, after which alpha^2 = prod_{i <= k} (1 - beta_i),
and tell the network k. Here step k is t = (k + 1) / 1000, so that t = 0 is the data; a time in between is a part of a
step (beta constant, log alpha^2 straight). So our samplers meet exactly the noise levels that such a model was trained
on. The limit of small steps, without the numbers of these, is `VariancePreserving` in process.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

STEPS = 1000
SCHEDULES = ("ddpm_linear", "ddpm_scaled_linear", "ddpm_cosine")


@dataclass(frozen=True)
class Steps:
    """alpha^2 + sigma^2 = 1, with alpha^2 a product over the steps so far.

    "ddpm_linear": beta from the first of `betas` to the last in equal steps (Ho et al. 2020, section 4: 1e-4 to 0.02).
    "ddpm_scaled_linear": their roots in equal steps (Rombach et al. 2022). "ddpm_cosine": alpha^2 of a squared cosine,
    beta at most 0.999 (Nichol and Dhariwal 2021, equation 17), without `betas`.
    """

    schedule: str = "ddpm_linear"
    betas: tuple[float, float] = (1e-4, 0.02)

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"path.schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if not 0 < self.betas[0] <= self.betas[1] < 1:
            raise ValueError(f"path.betas: expected 0 < first <= last < 1, got {list(self.betas)}")

    def _place(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t -> -log alpha^2 where its step begins, what the step adds, the part of it that is done; float64."""
        sums, place = _sums(self, t.device), t.double() * STEPS
        step = place.detach().floor().long().clamp(0, STEPS - 1)
        return sums[step], sums[step + 1] - sums[step], place - step

    def _sum(self, t: Tensor) -> Tensor:
        """-log alpha^2, float64."""
        begun, added, part = self._place(t)
        return begun + part * added

    def alpha(self, t: Tensor) -> Tensor:
        """The root of prod (1 - beta)."""
        return torch.exp(-0.5 * self._sum(t)).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2) without cancellation near t = 0."""
        return torch.sqrt(-torch.expm1(-self._sum(t))).to(t.dtype)

    def direction(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(-sigma, alpha), as wherever variance is preserved."""
        return -self.sigma(t), self.alpha(t)

    def speed(self, t: Tensor) -> Tensor:
        """-alpha' / sigma, with alpha' = -1/2 (-log alpha^2)' alpha; infinite at t = 0."""
        added = self._place(t)[1]
        return (0.5 * STEPS * added).to(t.dtype) * self.alpha(t) / self.sigma(t)

    def at(self, level: Tensor) -> Tensor:
        """The inverse of -log alpha^2 = log(1 + level^2)."""
        sums, wanted = _sums(self, level.device), torch.log1p(level.double().square())
        step = (torch.searchsorted(sums, wanted.contiguous(), right=True) - 1).clamp(0, STEPS - 1)
        part = (wanted - sums[step]) / (sums[step + 1] - sums[step])
        return ((step + part.clamp(max=1.0)) / STEPS).to(level.dtype)

    def scale(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def clock(self, t: Tensor) -> Tensor:
        """k / 1000, which is t - 1 / 1000, at least 0."""
        return (t.double() - 1.0 / STEPS).clamp(min=0.0).to(t.dtype)


@lru_cache(maxsize=16)
def _sums(path: Steps, device: torch.device) -> Tensor:
    """-log alpha^2 after 0 ... 1000 steps, float64 [1001]."""
    if path.schedule == "ddpm_cosine":
        place = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
        share = torch.cos(0.5 * math.pi * (place + 0.008) / 1.008).square()
        beta = (1.0 - share[1:] / share[:-1]).clamp(max=0.999)
    else:
        power = 2.0 if path.schedule == "ddpm_scaled_linear" else 1.0
        first, last = (beta ** (1.0 / power) for beta in path.betas)
        beta = torch.linspace(first, last, STEPS, dtype=torch.float64) ** power
    return torch.cat([beta.new_zeros(1), -torch.log1p(-beta).cumsum(0)]).to(device)
