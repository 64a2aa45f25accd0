"""Samplers: pure functions from noise to x0 over a denoiser and times. No network, no randomness of their own.

Deterministic ones walk the probability flow of the path (Song et al. 2021, section 4.3), where x0 = denoise(x, t) is
the expected data:

    eps = (x - alpha x0) / sigma            dx/dt = alpha' x0 + sigma' eps = speed (a x0 + b eps)

Stochastic ones walk the reverse SDE, whose marginals are the same: they put fresh noise in place of some of eps.

Arguments: denoise (x, t, condition) -> x0; x [n, ...] at times[0]; times float64 [steps + 1], falling, times[-1]
usually 0 (grids.py); condition as the denoiser takes it; in stochastic ones, noise: step number -> standard normal
noise like x. All return x at times[-1], in the dtype of x. t reaches the denoiser as [n].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from models.conditioning import Conditions
from models.diffusion.denoiser import Denoiser
from models.diffusion.process import Path

Noise = Callable[[int], Tensor]
Sampler = Callable[[Denoiser, Path, Tensor, Tensor, Conditions], Tensor]
StochasticSampler = Callable[[Denoiser, Path, Tensor, Tensor, Conditions, Noise], Tensor]


def _x0(denoise: Denoiser, x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
    return denoise(x, x.new_full((x.shape[0],), float(t)), condition)


def _eps(path: Path, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """eps = (x - alpha x0) / sigma; t is 0-dimensional and not 0."""
    return (x - path.alpha(t) * x0) / path.sigma(t)


def _slope(denoise: Denoiser, path: Path, x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
    """dx/dt = speed (a x0 + b eps)."""
    x0 = _x0(denoise, x, t, condition)
    a, b = path.direction(t)
    return path.speed(t) * (a * x0 + b * _eps(path, x, x0, t))


def _shrink(path: Path, t: Tensor, s: Tensor) -> Tensor:
    """exp(-h) for the step h = lambda_s - lambda_t of lambda = log(alpha / sigma): the noise level of s over that of t,
    0 where alpha_t = 0 or sigma_s = 0."""
    return path.alpha(t) * path.sigma(s) / (path.alpha(s) * path.sigma(t))


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
        x0 = _x0(denoise, x, t, condition)
        x = path.alpha(s) * x0 + path.sigma(s) * _eps(path, x, x0, t)  # x_s = alpha_s x0 + sigma_s eps
    return x


def ddpm(denoise: Denoiser, path: Path, x: Tensor, times: Tensor, condition: Conditions, noise: Noise) -> Tensor:
    """Ancestral sampling, first order in law, one evaluation a step: draws x_s from q(x_s | x_t, x0) (Ho et al. 2020,
    equations 6 and 7; for any path: Kingma et al. 2021, "Variational Diffusion Models", appendix A).

    With r = (alpha_t sigma_s / (alpha_s sigma_t))^2, the ratio of the SNRs, that law is N(alpha_s x0 + sigma_s sqrt(r)
    eps, sigma_s^2 (1 - r)): DDIM with the share 1 - r of eps drawn anew (DDIM's eta = 1).
    """
    for step, (t, s) in enumerate(itertools.pairwise(times)):
        x0 = _x0(denoise, x, t, condition)
        root = _shrink(path, t, s)  # sqrt(r)
        eps = root * _eps(path, x, x0, t)
        if s > 0:
            eps = eps + (1.0 - root.square()).sqrt() * noise(step)
        x = path.alpha(s) * x0 + path.sigma(s) * eps
    return x


def euler_ancestral(
    denoise: Denoiser, path: Path, x: Tensor, times: Tensor, condition: Conditions, noise: Noise
) -> Tensor:
    """A step of Euler's method beyond s, to d = s^2 / t, then forward to s by fresh noise; first order in law, one
    evaluation a step. After `sample_euler_ancestral` (and its `_RF`) of Katherine Crowson's k-diffusion, with eta = 1.

    Forward: q(x_s | x_d) = N(alpha_s / alpha_d x_d, sigma_s^2 - (alpha_s sigma_d / alpha_d)^2). On the EDM path it is
    `ddpm`.
    """
    for step, (t, s) in enumerate(itertools.pairwise(times)):
        down = s * s / t
        x = x + (down - t) * _slope(denoise, path, x, t, condition)
        if s > 0:
            ratio = path.alpha(s) / path.alpha(down)
            added = path.sigma(s).square() - (ratio * path.sigma(down)).square()
            x = ratio * x + added.clamp(min=0.0).sqrt() * noise(step)
    return x


def dpmpp_2m(denoise: Denoiser, path: Path, x: Tensor, times: Tensor, condition: Conditions) -> Tensor:
    """DPM-Solver++(2M), second order, one evaluation a step (Lu et al. 2022, "DPM-Solver++", algorithm 2).

    With h = lambda_s - lambda_t and D = x0 + h / (2 h_before) (x0 - x0_before), x0 carried on by a straight line:
    x_s = sigma_s / sigma_t x_t + alpha_s (1 - exp(-h)) D. Exact where D does not change.
    """
    memory = _Line()
    for t, s in itertools.pairwise(times):
        shrink = _shrink(path, t, s)  # exp(-h)
        d = memory.ahead(_x0(denoise, x, t, condition), shrink)
        x = path.sigma(s) / path.sigma(t) * x + path.alpha(s) * (1.0 - shrink) * d
    return x


def dpmpp_sde(denoise: Denoiser, path: Path, x: Tensor, times: Tensor, condition: Conditions, noise: Noise) -> Tensor:
    """SDE-DPM-Solver++(2M), one evaluation a step (Lu et al. 2022, "DPM-Solver++"; k-diffusion's
    `dpmpp_2m_sde`): `dpmpp_2m` for the reverse SDE. Second order in law.

    x_s = sigma_s / sigma_t exp(-h) x_t + alpha_s (1 - exp(-2h)) D + sigma_s sqrt(1 - exp(-2h)) noise.
    """
    memory = _Line()
    for step, (t, s) in enumerate(itertools.pairwise(times)):
        shrink = _shrink(path, t, s)  # exp(-h)
        d = memory.ahead(_x0(denoise, x, t, condition), shrink)
        fresh = 1.0 - shrink.square()
        x = path.sigma(s) / path.sigma(t) * shrink * x + path.alpha(s) * fresh * d
        if s > 0:
            x = x + path.sigma(s) * fresh.sqrt() * noise(step)
    return x


class _Line:
    """The last x0 and step of a multistep solver, of one call: D of `dpmpp_2m`."""

    def __init__(self) -> None:
        self.before: tuple[Tensor, Tensor] | None = None  # x0, h

    def ahead(self, x0: Tensor, shrink: Tensor) -> Tensor:
        """x0 carried on to the middle of the coming step; x0 itself in the first step and in those that have no end
        (h is infinite: to sigma = 0, from alpha = 0) or no line behind them.
        """
        h = -torch.log(shrink)
        d = x0
        if self.before is not None and torch.isfinite(h):
            d = x0 + h / (2.0 * self.before[1]) * (x0 - self.before[0])
        self.before = (x0, h)
        return d


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "dpmpp_2m": dpmpp_2m, "euler": euler, "heun": heun}
STOCHASTIC: dict[str, StochasticSampler] = {
    "ddpm": ddpm,
    "dpmpp_sde": dpmpp_sde,
    "euler_ancestral": euler_ancestral,
}
JUMPS: dict[str, Sampler] = {"few": ddim}  # of a student only (`distillation.py`)
NAMES = (*sorted([*SAMPLERS, *STOCHASTIC]), *JUMPS)


def evaluations(sampler: str, steps: int) -> int:
    """Calls of the denoiser for `steps` steps down to t = 0."""
    return 2 * steps - 1 if sampler == "heun" else steps


def sample(
    sampler: str, denoise: Denoiser, path: Path, x: Tensor, times: Tensor, condition: Conditions, noise: Noise
) -> Tensor:
    """Any of `NAMES`; `noise` is called by the stochastic ones only."""
    if sampler in STOCHASTIC:
        return STOCHASTIC[sampler](denoise, path, x, times, condition, noise)
    if sampler in SAMPLERS or sampler in JUMPS:
        return (SAMPLERS | JUMPS)[sampler](denoise, path, x, times, condition)
    raise ValueError(f"sampler: expected one of {', '.join(NAMES)}, got {sampler!r}")
