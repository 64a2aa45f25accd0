"""Each path against its formula: ends, SNR, derivatives."""

from __future__ import annotations

import math

import pytest
import torch

from models.diffusion.process import (
    EDM,
    SCHEDULES,
    RectifiedFlow,
    VariancePreserving,
    add_noise,
    log_snr,
    make_path,
    noise_level,
)

PATHS = [RectifiedFlow(), *map(VariancePreserving, SCHEDULES), EDM()]
T = torch.linspace(0.001, 0.999, 97, dtype=torch.float64)


def rescaled_linear(t):
    """Lin et al. 2024, algorithm 1, on sqrt(alpha bar) of the linear schedule: minus the last, times first over the
    difference."""
    a, first, last = (math.exp(-0.5 * (0.1 * s + 19.9 * s * s / 2)) for s in (t, 0.0, 1.0))
    return (a - last) * first / (first - last)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_ends_and_monotony(path):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha, sigma = path.alpha(ends), path.sigma(ends)
    assert alpha[0] == 1 and sigma[0] == 0
    assert 0 <= alpha[1] / sigma[1] <= 1 / 80
    assert (alpha[1] == 0) == (path in (RectifiedFlow(), VariancePreserving("cosine"), PATHS[3]))
    assert torch.all(torch.diff(log_snr(path, T)) < 0)


@pytest.mark.parametrize(
    ("path", "snr"),
    [
        (RectifiedFlow(), lambda t: ((1 - t) / t) ** 2),
        # 1 / (exp(integral of beta) - 1), the integral being 0.1 t + 19.9 t^2 / 2
        (VariancePreserving("linear"), lambda t: 1 / math.expm1(0.1 * t + 19.9 * t * t / 2)),
        (VariancePreserving("cosine"), lambda t: math.tan(math.pi * t / 2) ** -2),
        (VariancePreserving("zero_terminal_snr"), lambda t: 1 / (rescaled_linear(t) ** -2 - 1)),
        (EDM(), lambda t: (80 * t) ** -2),
    ],
    ids=["rectified_flow", "linear", "cosine", "zero_terminal_snr", "edm"],
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


@pytest.mark.parametrize("path", PATHS[1:4], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_variance_is_preserved(path, dtype):
    t = torch.linspace(0, 1, 1001, dtype=dtype)
    one = path.alpha(t).square() + path.sigma(t).square()
    torch.testing.assert_close(one, torch.ones_like(t), rtol=0, atol=2e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_speed_and_direction_are_the_derivatives(path):
    t = T.clone().requires_grad_()
    (d_alpha,) = torch.autograd.grad((path.alpha(t) + 0 * t).sum(), t)
    (d_sigma,) = torch.autograd.grad(path.sigma(t).sum(), t)
    a, b = path.direction(T)
    torch.testing.assert_close(path.speed(T) * a, d_alpha, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(path.speed(T) * b, d_sigma, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(path.alpha(T) * b - path.sigma(T) * a, torch.ones_like(T), rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_at_is_the_inverse_of_the_noise_level(path):
    torch.testing.assert_close(path.at(noise_level(path, T)), T, rtol=1e-9, atol=1e-12)
    ends = path.at(torch.tensor([0.0, 1e9, math.inf], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-4)


def test_what_the_network_is_given():
    for path in PATHS[:4]:
        assert torch.equal(path.scale(T), torch.ones_like(T)) and torch.equal(path.clock(T), T)
    edm, sigma = EDM(), torch.tensor([0.002, 0.4, 80.0], dtype=torch.float64)
    t = edm.at(sigma)
    torch.testing.assert_close(edm.scale(t), 1 / (sigma**2 + 1).sqrt())  # Karras et al. 2022, table 1, c_in
    torch.testing.assert_close(edm.clock(t), (sigma / 0.002).log() / math.log(40_000))
    assert edm.clock(torch.zeros(1)) == 0


def test_add_noise_broadcasts_and_keeps_float32():
    x0, eps, t = torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), -1.0), torch.tensor([0.25, 1.0])
    x = add_noise(RectifiedFlow(), x0, eps, t)
    assert x.dtype == torch.float32
    assert torch.all(x[0] == 0.5) and torch.all(x[1] == -1)


def test_unknown_names():
    assert [make_path("rectified_flow"), make_path("variance_preserving", "cosine"), make_path("edm")] == [
        PATHS[0],
        PATHS[2],
        PATHS[4],
    ]
    with pytest.raises(ValueError, match="rectified_flow"):
        make_path("vp")
    with pytest.raises(ValueError, match=r"schedule.*'sqrt'"):
        make_path("variance_preserving", "sqrt")
