"""Inverse problems by walks and chains of their own: RePaint, particles, and a Gibbs sampler that is exact.

Arguments are those of the stochastic samplers (samplers.py), where `noise` is asked by the number of a draw. y and
operator as in inverse.py.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from models.conditioning import Conditions
from models.diffusion.denoiser import Denoiser
from models.diffusion.inverse import likelihood
from models.diffusion.operators import Linear, Operator, dot
from models.diffusion.process import Path, noise_level
from models.diffusion.samplers import Noise, StochasticSampler, ddpm, dpmpp_sde

TERMS = 8  # of the series of a root
REST = 1 / 20  # the last noise level of a sweep over its first: what is left of the noise's variance is 1 / 400


def repaint(
    denoise: Denoiser,
    path: Path,
    x: Tensor,
    times: Tensor,
    condition: Conditions,
    noise: Noise,
    mask: Tensor,
    known: Tensor,
    again: int = 10,
) -> Tensor:
    """Inpainting without noise in y: after each step of `ddpm` what is known is put in its place, noised as x is, and
    the step is made `again` times, from where fresh noise leads back (RePaint, Lugmayr et al. 2022, algorithm 1).

    mask [n, 1, h, w], 1 where `known` [n, C, h, w] is. Not the posterior: the known part is drawn anew each time, so
    one pass hardly makes the unknown part agree with it. With `again` the mean comes right, while variance is lost, as
    each step of finite size takes some away; that takes more steps as well.
    """
    draws = itertools.count()
    for t, s in itertools.pairwise(times):
        for left in reversed(range(again if s > 0 else 1)):
            x = ddpm(denoise, path, x, torch.stack([t, s]), condition, lambda _: noise(next(draws)))
            there = path.alpha(s) * known
            if s > 0:
                there = there + path.sigma(s) * noise(next(draws))
            x = mask * there + (1.0 - mask) * x
            if left:  # forward: q(x_t | x_s) = N(ratio x_s, sigma_t^2 - (ratio sigma_s)^2)
                ratio = path.alpha(t) / path.alpha(s)
                added = path.sigma(t).square() - (ratio * path.sigma(s)).square()
                x = ratio * x + added.sqrt() * noise(next(draws))
    return x


def twisted(
    denoise: Denoiser,
    path: Path,
    x: Tensor,
    times: Tensor,
    condition: Conditions,
    noise: Noise,
    operator: Operator,
    y: Tensor,
    spread: float,
    particles: int,
    uniform: Noise,
) -> Tensor:
    """Sets of `particles` rows of x, a set a sample: steps of `ddpm` with `likelihood_guided`, then weights that make
    up for what that gets wrong, and resampling within each set (TDS, Wu et al. 2023, algorithm 1). For any A, if y has
    noise.

    A step from t to s draws x_s from q, the law that y leads, in place of p, that of `ddpm`, and multiplies the weight
    by p(x_s | x_t) / q(x_s | x_t) * L_s(x_s) / L_t(x_t), L the likelihood as in `likelihood`, at t = 0 the true one. So
    the weighted particles have the law of the walk times the likelihood, in the limit of many. Where the effective
    number of a set's weights w, 1 / sum w^2, is below half, and at the end, particles are drawn by their weights.

    y is one for all rows, or has a row each. uniform: number of a step -> [sets] in [0, 1). What comes back has equal
    weights; rows of one set are not independent, and some are equal.
    """
    x0, log, gradient = likelihood(denoise, path, operator, y, spread, x, _rows(x, times[0]), condition)
    weight = log
    for step, (t, s) in enumerate(itertools.pairwise(times)):
        ratio = path.alpha(t) * path.sigma(s) / (path.alpha(s) * path.sigma(t))
        # ddpm's mean: alpha_s x0 + sigma_s ratio eps, eps = (x - alpha_t x0) / sigma_t
        mean = path.alpha(s) * x0 + path.sigma(s) * ratio * (x - path.alpha(t) * x0) / path.sigma(t)
        if s > 0:
            fresh = 1.0 - ratio.square()
            deviation = path.sigma(s) * fresh.sqrt()
            # what a term sigma^2 / alpha gradient of x0 makes of the mean, in deviations
            shift = path.alpha(s) * fresh * path.sigma(t).square() / path.alpha(t) * gradient / deviation
            drawn = shift + noise(step)
            x = mean + deviation * drawn
            x0, log_s, gradient = likelihood(denoise, path, operator, y, spread, x, _rows(x, s), condition)
            weight = weight + dot(shift, 0.5 * shift - drawn) + log_s - log  # log p / q, and the likelihoods
        else:
            x, error = mean, y - operator.forward(mean)
            log_s = -0.5 * dot(error, error) / operator.deviation**2
            weight = weight + log_s - log
        share = torch.softmax(weight.reshape(-1, particles), 1)
        poor = 1.0 / share.square().sum(1) < (0.5 * particles if s > 0 else math.inf)
        rows = torch.where(poor[:, None], _systematic(share, uniform(step)), torch.arange(particles, device=x.device))
        rows = (rows + particles * torch.arange(len(rows), device=x.device)[:, None]).flatten()
        x, x0, log, gradient = x[rows], x0[rows], log_s[rows], gradient[rows]
        weight = torch.where(poor.repeat_interleave(particles).reshape(weight.shape), 0.0, weight)
    return x


def _systematic(share: Tensor, uniform: Tensor) -> Tensor:
    """Shares [sets, n] that add up to 1, uniform [sets] -> which of n, [sets, n]: place k is where (k + uniform) / n
    falls in the sums of the shares, so that each comes n times its share but for rounding."""
    n = share.shape[1]
    places = (torch.arange(n, device=share.device) + uniform.to(share)[:, None]) / n
    return torch.searchsorted(share.cumsum(1), places).clamp(max=n - 1)


def gibbs_times(path: Path, operator: Linear, steps: int) -> Tensor:
    """For `gibbs`, float64 [steps + 1]: equal steps of the seventh root of noise levels (as `grids.karras`), from the
    largest rho that keeps the series of `_root` short, s / (|A| sqrt(2)), to a twentieth of it, then 0.
    """
    rho = operator.deviation / operator.norm / math.sqrt(2.0)
    levels = torch.linspace(1.0, REST ** (1 / 7), steps, dtype=torch.float64) ** 7 * rho
    return torch.cat([path.at(levels), levels.new_zeros(1)])


def gibbs(
    denoise: Denoiser,
    path: Path,
    x0: Tensor,
    times: Tensor,
    condition: Conditions,
    noise: Noise,
    operator: Linear,
    y: Tensor,
    sweeps: int,
    walk: StochasticSampler = dpmpp_sde,
) -> Tensor:
    """`sweeps` from x0 [n, ...], data that agree with y about, to x0 of the posterior; for a linear A, if y has noise.

    Let z = x0 + rho e with e standard normal, rho |A| <= s, and let the noise of y be that of z seen by A and a rest:
    s noise = rho A e + rest. x0 and y are as they were, so both conditional laws lead to the posterior of x0:

        z given x0, y    N(x0 + rho^2 / s^2 A^T (y - A x0), rho^2 (1 - rho^2 / s^2 A^T A))
        x0 given z, y    that of x0 given z, since y - z is noise: a stochastic sampler's walk from the level rho

    No gradient, and nothing is approximated but by the walk's steps. The auxiliary variable is that of Marnissi et al.
    2018; plug and play samplers (Xu and Chi 2024; Wu et al. 2024, PnP-DM) walk likewise, but take z for x0 in the
    likelihood, which gives the posterior only for rho to 0. Each sweep moves x0 by about rho, so modes that are further
    apart keep the weights that they begin with.

    times: from path.at(rho) to 0, as `gibbs_times`.
    """
    rho = float(noise_level(path, times[0]))
    share = (rho / operator.deviation) ** 2  # rho^2 / s^2
    if share * operator.norm**2 > 0.5 + 1e-6:
        raise ValueError(f"times: expected rho |A| <= s / sqrt(2), got rho = {rho:g}, s = {operator.deviation:g}")
    draws = itertools.count()
    for _ in range(sweeps):
        pull = share * operator.adjoint(y - operator.forward(x0))
        z = x0 + pull + rho * _root(operator, share, noise(next(draws)))
        x0 = walk(denoise, path, path.alpha(times[0]) * z, times, condition, lambda _: noise(next(draws)))
    return x0


def _root(operator: Linear, share: float, e: Tensor) -> Tensor:
    """sqrt(1 - B) e for B = share A^T A, |B| <= 1/2, by its series 1 - B / 2 - B^2 / 8 - B^3 / 16 - ..."""
    total, power, coefficient = e, e, 0.5
    for j in range(1, TERMS + 1):
        power = share * operator.adjoint(operator.forward(power))
        total = total - coefficient * power
        coefficient *= (2 * j - 1) / (2 * j + 2)
    return total


def _rows(x: Tensor, t: Tensor) -> Tensor:
    """t as the denoiser takes it, [n]."""
    return x.new_full((x.shape[0],), float(t))
