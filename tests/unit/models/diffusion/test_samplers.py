"""Samplers where the answer is a formula.

For x0 ~ N(m, S) the flow is affine, so a sampler's map, and with it mean and covariance of its output, are known
exactly by walking the origin and the axes: no sampling error. For mixtures on a line the flow carries quantiles over.
"""

from __future__ import annotations

import math

import pytest
import torch

from models.diffusion.denoiser import start_time
from models.diffusion.gaussian import gaussian_denoiser, mixture_denoiser
from models.diffusion.objectives import PREDICTIONS
from models.diffusion.process import RectifiedFlow, VariancePreserving
from models.diffusion.grids import time_grid
from models.diffusion.samplers import SAMPLERS, ddim, euler, heun

PATHS = [RectifiedFlow(), VariancePreserving("linear"), VariancePreserving("cosine")]
ORDERS = {"euler": 1, "ddim": 1, "heun": 2}
MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
FACTOR = torch.tensor([[1.2, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.4, 0.2, 0.4]], dtype=torch.float64)
COVARIANCE = FACTOR @ FACTOR.T


def affine_map(sampler, path, steps):
    """The sampler as x -> A x + c: A [d, d], c [d]."""
    walkers = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    ends = sampler(gaussian_denoiser(MEAN, COVARIANCE, path), path, walkers, time_grid(steps), {})
    return (ends[1:] - ends[0]).T, ends[0]


def exact_map(path):
    """x0 = m + S^(1/2) (alpha^2 S + sigma^2 I)^(-1/2) (x1 - alpha m), alpha and sigma at t = 1."""
    one = torch.ones((), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(COVARIANCE)
    gain = (values / (path.alpha(one) ** 2 * values + path.sigma(one) ** 2)).sqrt()
    matrix = vectors @ torch.diag(gain) @ vectors.T
    return matrix, MEAN - path.alpha(one) * matrix @ MEAN


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_output_moments_of_a_gaussian(name, path):
    """From x ~ N(0, I) at t = 1: mean c, covariance A A^T. What alpha(1) > 0 leaves out is in the exact map too."""
    steps = 400
    matrix, centre = affine_map(SAMPLERS[name], path, steps)
    exact_matrix, exact_centre = exact_map(path)
    bound = {1: 0.03, 2: 1e-3}[ORDERS[name]]
    assert float((centre - exact_centre).abs().max()) < bound
    assert float((matrix @ matrix.T - exact_matrix @ exact_matrix.T).abs().max()) < bound
    # and the exact map gives the data's own moments, within what alpha(1) = 0.0066 of the linear schedule costs
    assert float((exact_matrix @ exact_matrix.T - COVARIANCE).abs().max()) < 2e-4
    assert float((exact_centre - MEAN).abs().max()) < 0.01


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_order_of_convergence(name, path):
    """Error of the map over steps 64 to 512, as a slope on log-log axes."""
    exact = torch.cat([part.flatten() for part in exact_map(path)])
    counts = [64, 128, 256, 512]
    errors = []
    for steps in counts:
        found = torch.cat([part.flatten() for part in affine_map(SAMPLERS[name], path, steps)])
        errors.append(float((found - exact).norm()))
    x = torch.tensor(counts, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    slope = -float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    assert slope == pytest.approx(ORDERS[name], abs=0.15), errors


@pytest.mark.parametrize("path", [PATHS[0], PATHS[2]], ids=str)
def test_mixture_quantiles_are_carried_over(path):
    """On a line the flow keeps P(x_t < walker): Phi(noise) = F_mixture(x0). alpha(1) = 0 on these paths."""
    weights, means, scales = [0.35, 0.65], [-1.5, 1.0], [0.3, 0.6]
    denoise = mixture_denoiser(
        weights,
        [torch.tensor([m], dtype=torch.float64) for m in means],
        [torch.tensor([[s * s]], dtype=torch.float64) for s in scales],
        path,
    )
    n = 400
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    noise = torch.special.ndtri(u)[:, None]
    found = heun(denoise, path, noise, time_grid(200), {})[:, 0]
    cdf = sum(w * torch.special.ndtr((found - m) / s) for w, m, s in zip(weights, means, scales, strict=True))
    assert float((cdf - u).abs().max()) < 2e-3
    mean = sum(w * m for w, m in zip(weights, means, strict=True))
    variance = sum(w * (s * s + m * m) for w, m, s in zip(weights, means, scales, strict=True)) - mean**2
    assert float(found.mean()) == pytest.approx(mean, abs=2e-3)
    assert float(found.var()) == pytest.approx(variance, rel=5e-3)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_ddim_is_exact_in_one_step_for_a_point(path):
    """Data that are one point: x0 and eps do not change along the walk."""
    point = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    end = ddim(lambda x, t, c: point.expand_as(x), path, x, time_grid(1), {})
    torch.testing.assert_close(end, point.expand_as(x))


def test_ddim_is_euler_on_the_straight_path():
    path, x = RectifiedFlow(), torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    denoise = gaussian_denoiser(MEAN, COVARIANCE, path)
    a, b = (sampler(denoise, path, x, time_grid(7), {}) for sampler in (ddim, euler))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "calls"), [("euler", 6), ("ddim", 6), ("heun", 11)])
def test_evaluations_condition_and_dtype(name, calls):
    seen = []

    def denoise(x, t, condition):
        seen.append((t.shape, t.dtype, condition["class"].tolist()))
        return 0.5 * x

    x = torch.ones(2, 3, 4, 4)
    end = SAMPLERS[name](denoise, RectifiedFlow(), x, time_grid(6), {"class": torch.tensor([1, 2])})
    assert end.shape == x.shape and end.dtype == torch.float32
    assert seen == [((2,), torch.float32, [1, 2])] * calls


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_start_time(path, prediction):
    start = start_time(path, prediction)
    alpha = float(path.alpha(torch.tensor(start, dtype=torch.float64)))
    if prediction == "eps":
        assert alpha >= 0.005 - 1e-12 and start > 0.99
    else:
        assert start == 1.0


def test_time_grid():
    grid = time_grid(4, start=0.8)
    torch.testing.assert_close(grid, torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0], dtype=torch.float64))
    assert grid[-1] == 0 and math.isclose(float(time_grid(3)[0]), 1.0)
    for bad in ({"steps": 0}, {"steps": 2, "start": 0.0}, {"steps": 2, "start": 1.5}):
        with pytest.raises(ValueError, match="time grid"):
            time_grid(**bad)
