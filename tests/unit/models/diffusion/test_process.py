"""Each path against its formula: ends, SNR, derivatives."""

from __future__ import annotations

import math

import pytest
import torch

from models.diffusion.process import EDM, SCHEDULES, RectifiedFlow, VariancePreserving, add_noise, log_snr, make_path

PATHS = [RectifiedFlow(), *map(VariancePreserving, SCHEDULES), EDM()]
T = torch.linspace(0.001, 0.999, 97, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_ends_and_monotony(path):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha, sigma = path.alpha(ends), path.sigma(ends)
    assert alpha[0] == 1 and sigma[0] == 0
    assert 0 <= alpha[1] < 0.01 and 0.999 < sigma[1] <= 1
    assert torch.all(torch.diff(log_snr(path, T)) < 0)


@pytest.mark.parametrize(
    ("path", "snr"),
    [
        (RectifiedFlow(), lambda t: ((1 - t) / t) ** 2),
        # 1 / (exp(integral of beta) - 1), the integral being 0.1 t + 19.9 t^2 / 2
        (VariancePreserving("linear"), lambda t: 1 / math.expm1(0.1 * t + 19.9 * t * t / 2)),
        (VariancePreserving("cosine"), lambda t: math.tan(math.pi * t / 2) ** -2),
    ],
    ids=str,
)
def test_snr_is_the_formula(path, snr):
    expected = torch.tensor([math.log(snr(float(t))) for t in T], dtype=torch.float64)
    torch.testing.assert_close(log_snr(path, T), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_snr(path, T.float()).double(), expected, rtol=1e-4, atol=1e-4)


def test_linear_is_the_limit_of_ddpm_steps():
    """prod(1 - beta_i), beta from 1e-4 to 0.02 in 1,000 steps (Ho et al. 2020, section 4)."""
    products = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    alpha = VariancePreserving("linear").alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    torch.testing.assert_close(alpha.square()[:500], products[:500], rtol=0.01, atol=0)


@pytest.mark.parametrize("path", PATHS[1:], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_variance_is_preserved(path, dtype):
    t = torch.linspace(0, 1, 1001, dtype=dtype)
    one = path.alpha(t).square() + path.sigma(t).square()
    torch.testing.assert_close(one, torch.ones_like(t), rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_speed_and_direction_are_the_derivatives(path):
    t = T.clone().requires_grad_()
    (d_alpha,) = torch.autograd.grad(path.alpha(t).sum(), t)
    (d_sigma,) = torch.autograd.grad(path.sigma(t).sum(), t)
    a, b = path.direction(T)
    torch.testing.assert_close(path.speed(T) * a, d_alpha, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(path.speed(T) * b, d_sigma, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(path.alpha(T) * b - path.sigma(T) * a, torch.ones_like(T), rtol=1e-12, atol=0)


def test_add_noise_broadcasts_and_keeps_float32():
    x0, eps, t = torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), -1.0), torch.tensor([0.25, 1.0])
    x = add_noise(RectifiedFlow(), x0, eps, t)
    assert x.dtype == torch.float32
    assert torch.all(x[0] == 0.5) and torch.all(x[1] == -1)


def test_unknown_names():
    with pytest.raises(ValueError, match="rectified_flow"):
        make_path("edm")
    with pytest.raises(ValueError, match=r"schedule.*'sqrt'"):
        make_path("variance_preserving", "sqrt")
