"""Samplers where the answer is a formula.

For x0 ~ N(m, S) a sampler's output is affine in its start and its noise, so its law is known exactly by walking the
origin, the axes, and each step's noise along each axis: no sampling error. For mixtures on a line the flow carries
quantiles over, and the stochastic samplers' moments are those of the data.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from models.diffusion.denoiser import start_time
from models.diffusion.gaussian import gaussian_denoiser
from models.diffusion.grids import grid, time_grid
from models.diffusion.objectives import PREDICTIONS
from models.diffusion.process import EDM, SCHEDULES, RectifiedFlow, VariancePreserving
from models.diffusion.samplers import SAMPLERS, STOCHASTIC, ddim, ddpm, evaluations, sample

PATHS = [RectifiedFlow(), *map(VariancePreserving, SCHEDULES), EDM()]
ORDERS = {"euler": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2, "ddpm": 1, "euler_ancestral": 1, "dpmpp_sde": 2}
MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
FACTOR = torch.tensor([[1.2, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.4, 0.2, 0.4]], dtype=torch.float64)
COVARIANCE = FACTOR @ FACTOR.T


def steps_of(name, path, steps):
    """The grid to measure an order on: DPM-Solver++ steps in log noise levels, which on a uniform grid never get small
    at its ends (it comes to second order there but for a logarithm)."""
    return grid("karras" if name.startswith("dpmpp") else "auto", steps, path)


def output_law(name, path, steps):
    """Mean [3] and covariance [3, 3] of what a sampler makes of x ~ N(alpha m, alpha^2 S + sigma^2 I) at its start."""
    times = steps_of(name, path, steps)
    extra = steps if name in STOCHASTIC else 0
    walkers = torch.zeros(4 + 3 * extra, 3, dtype=torch.float64)  # origin, three axes, three for each step's noise
    walkers[1:4] = torch.eye(3)

    def noise(step):
        z = torch.zeros_like(walkers)
        z[4 + 3 * step : 7 + 3 * step] = torch.eye(3)
        return z

    ends = sample(name, gaussian_denoiser(MEAN, COVARIANCE, path), path, walkers, times, {}, noise)
    spread = ends[1:] - ends[0]  # [3 (1 + extra), 3]: rows are images of axes
    alpha, sigma = path.alpha(times[0]), path.sigma(times[0])
    start = alpha**2 * COVARIANCE + sigma**2 * torch.eye(3)
    covariance = spread[:3].T @ start @ spread[:3] + spread[3:].T @ spread[3:]
    return ends[0] + alpha * MEAN @ spread[:3], covariance


def slope(counts, errors):
    """Order of convergence: minus the slope of log error over log steps."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (counts, errors))
    return -float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("name", [*SAMPLERS, *STOCHASTIC])
def test_law_of_the_output_and_order_of_convergence(name, path):
    """Mean and covariance go to the data's, as fast as the order says."""
    counts = [16, 32, 64, 128] if name in STOCHASTIC else [32, 64, 128, 256]
    far = path == EDM() or (name == "euler_ancestral" and path in (PATHS[1], PATHS[3]))
    if ORDERS[name] == 1 and far:  # from a level of 80 to 0.002 is a long way, and sigma like sqrt(t) a steep one
        counts = [128, 256, 512]
    errors = []
    for steps in counts:
        mean, covariance = output_law(name, path, steps)
        errors.append(float((mean - MEAN).norm() + (covariance - COVARIANCE).norm()))
    assert errors[-1] < {1: 0.16, 2: 8e-3}[ORDERS[name]], errors
    assert slope(counts, errors) == pytest.approx(ORDERS[name], abs=0.25), errors


@pytest.mark.parametrize("shape", [(2, 3), (1, 3, 2), (1, 1, 3, 2)], ids=["1 side", "2 sides", "3 sides"])
@pytest.mark.parametrize("name", [*SAMPLERS, *STOCHASTIC])
def test_latents_of_any_sides_are_walked_as_a_vector_is(name, shape):
    """[n, C, *sides]: bit for bit what the six numbers in a row come to, which are tested above."""
    path, generator = VariancePreserving(), torch.Generator().manual_seed(0)
    factor, mean, *noises = (torch.randn(*s, generator=generator, dtype=torch.float64)
                             for s in ((6, 6), (6,), *[(5, 6)] * 5))  # fmt: skip
    denoise, times = gaussian_denoiser(mean, factor @ factor.T, path), grid("karras", 4, path)

    def walked(sides):
        return sample(
            name, denoise, path, noises[4].view(5, *sides), times, {}, lambda step: noises[step].view(5, *sides)
        )

    assert torch.equal(walked(shape), walked((6,)).view(5, *shape))


# ---- a mixture of two Gaussians on a line

WEIGHTS, MEANS, SCALES = [0.35, 0.65], [-1.2, 0.8], [0.4, 0.5]
MIX_MEAN = sum(w * m for w, m in zip(WEIGHTS, MEANS, strict=True))
MIX_VARIANCE = sum(w * (s * s + m * m) for w, m, s in zip(WEIGHTS, MEANS, SCALES, strict=True)) - MIX_MEAN**2


def mixture(path):
    """E[x0 | x] on a line, by Bayes' rule; x [n, 1]."""

    def denoise(x, t, condition):
        alpha, sigma = path.alpha(t[0].double()), path.sigma(t[0].double())
        total, answer = 0.0, 0.0
        for w, m, s in zip(WEIGHTS, MEANS, SCALES, strict=True):
            variance = alpha**2 * s * s + sigma**2
            density = w * torch.exp(-0.5 * (x - alpha * m) ** 2 / variance) / variance.sqrt() + 1e-300
            total = total + density
            answer = answer + density * (m + alpha * s * s / variance * (x - alpha * m))
        return answer / total

    return denoise


@cache
def quantiles(path, t, n):
    """The n x with P(x_t < x) = 1 / 2n, 3 / 2n, ..., by bisection; [n]. The grids of a path begin at the same t."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    alpha, sigma = (of(torch.tensor(t, dtype=torch.float64)) for of in (path.alpha, path.sigma))
    low, high = (torch.full_like(u, sign * 1000.0) for sign in (-1, 1))
    for _ in range(80):
        middle = 0.5 * (low + high)
        parts = zip(WEIGHTS, MEANS, SCALES, strict=True)
        below = sum(
            w * torch.special.ndtr((middle - alpha * m) / (alpha**2 * s * s + sigma**2).sqrt()) for w, m, s in parts
        )
        low, high = torch.where(below < u, middle, low), torch.where(below < u, high, middle)
    return low


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_mixture_quantiles_are_carried_over(name, path):
    """On a line the flow keeps P(x_t < walker): the exact end of each walker is the data's quantile."""
    counts, errors = [32, 64, 128, 256], []
    for steps in counts:
        times = steps_of(name, path, steps)
        walkers = quantiles(path, float(times[0]), 101)[:, None]
        found = SAMPLERS[name](mixture(path), path, walkers, times, {})[:, 0]
        errors.append(float((found - quantiles(path, float(times[-1]), 101)).square().mean().sqrt()))
    assert errors[-1] < {1: 0.03, 2: 2e-3}[ORDERS[name]], errors
    assert slope(counts, errors) == pytest.approx(ORDERS[name], abs=0.3), errors


@pytest.mark.parametrize("path", [PATHS[0], PATHS[2], PATHS[4]], ids=str)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_mixture_moments_of_stochastic_samplers(name, path):
    """Mean and variance of 20,000 walks of 64 steps; the error of the variance halves with half the step."""
    n = 20_000
    generator = torch.Generator().manual_seed(0)
    found = {}
    for steps in (16, 64):
        times = grid("auto", steps, path)
        x = quantiles(path, float(times[0]), n)[:, None]
        ends = sample(
            name, mixture(path), path, x, times, {}, lambda _: torch.randn(n, 1, generator=generator).double()
        )
        found[steps] = float(ends.mean()), float(ends.var())
    # a mean has a standard error of 0.008, a variance one of 0.011
    assert found[64][0] == pytest.approx(MIX_MEAN, abs=0.03), found
    assert found[64][1] == pytest.approx(MIX_VARIANCE, abs=0.12), found
    assert abs(found[64][1] - MIX_VARIANCE) < max(0.02, 0.5 * abs(found[16][1] - MIX_VARIANCE)), found


# ---- what they are to each other


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "ddpm", "dpmpp_sde"])
def test_exact_in_one_step_for_a_point(name, path):
    """Data that are one point: x0 does not change along the walk."""
    point = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    end = sample(name, lambda x, t, c: point.expand_as(x), path, x, time_grid(1), {}, lambda _: x)
    torch.testing.assert_close(end, point.expand_as(x))


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "ddpm", "dpmpp_sde"])
def test_they_know_a_path_by_its_noise_levels_only(name):
    """At equal levels, x / alpha is the same on every path."""
    levels = torch.tensor([50.0, 7.0, 2.0, 0.6, 0.1, 0.0], dtype=torch.float64)
    x, *z = torch.randn(6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = []
    for path in PATHS:
        times = path.at(levels)
        denoise = gaussian_denoiser(MEAN, COVARIANCE, path)
        ends.append(sample(name, denoise, path, path.alpha(times[0]) * 50 * x, times, {}, z.__getitem__))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-6, atol=1e-6)


def test_ddim_is_euler_on_the_straight_path_and_on_edm():
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for path in (RectifiedFlow(), EDM()):
        denoise = gaussian_denoiser(MEAN, COVARIANCE, path)
        a, b = (SAMPLERS[name](denoise, path, x, time_grid(7), {}) for name in ("ddim", "euler"))
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_euler_ancestral_is_ddpm_on_edm():
    path, x = EDM(), torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = torch.randn(9, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    denoise, times = gaussian_denoiser(MEAN, COVARIANCE, path), grid("karras", 9, path)
    a, b = (STOCHASTIC[name](denoise, path, x, times, {}, z.__getitem__) for name in ("ddpm", "euler_ancestral"))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_ddpm_is_the_posterior_of_its_paper():
    """Ho et al. 2020, equations 6 and 7, in their own symbols: one step from beta_t."""
    path = VariancePreserving("linear")
    times = torch.tensor([0.5, 0.4], dtype=torch.float64)
    bar_t, bar_s = path.alpha(times).square()
    alpha_t = bar_t / bar_s
    beta_t = 1 - alpha_t
    x, x0, z = (torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(3))
    mean = bar_s.sqrt() * beta_t / (1 - bar_t) * x0 + alpha_t.sqrt() * (1 - bar_s) / (1 - bar_t) * x
    variance = (1 - bar_s) / (1 - bar_t) * beta_t
    end = ddpm(lambda *_: x0, path, x, times, {}, lambda _: z)
    torch.testing.assert_close(end, mean + variance.sqrt() * z)


@pytest.mark.parametrize("name", [*SAMPLERS, *STOCHASTIC])
def test_evaluations_condition_dtype_and_noise(name):
    seen, asked = [], []

    def denoise(x, t, condition):
        seen.append((t.shape, t.dtype, condition["class"].tolist()))
        return 0.5 * x

    x = torch.ones(2, 3, 4, 4)
    end = sample(
        name,
        denoise,
        RectifiedFlow(),
        x,
        time_grid(6),
        {"class": torch.tensor([1, 2])},
        lambda step: asked.append(step) or torch.zeros_like(x),
    )
    assert end.shape == x.shape and end.dtype == torch.float32
    assert seen == [((2,), torch.float32, [1, 2])] * evaluations(name, 6)
    assert asked == (list(range(5)) if name in STOCHASTIC else [])  # the step to t = 0 adds none


def test_unknown_sampler():
    with pytest.raises(ValueError, match="ddim, ddpm, dpmpp_2m"):
        sample("magic", lambda *_: None, RectifiedFlow(), torch.ones(1), time_grid(1), {}, lambda _: torch.ones(1))


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_start_time(path, prediction):
    start = start_time(path, prediction)
    alpha = float(path.alpha(torch.tensor(start, dtype=torch.float64)))
    if prediction == "eps":
        assert alpha >= 0.005 - 1e-12 and start > 0.9
    else:
        assert start == 1.0


def test_ddim_with_two_grids_ends_at_the_same_point():
    path, x = RectifiedFlow(), torch.ones(1, 3, dtype=torch.float64)
    denoise = gaussian_denoiser(MEAN, COVARIANCE, path)
    a, b = (ddim(denoise, path, x, grid(kind, 2000, path), {}) for kind in ("uniform", "cosine"))
    assert math.isclose(float((a - b).abs().max()), 0.0, abs_tol=2e-3)
