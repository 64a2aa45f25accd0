"""Denoisers that know y, against the posterior's own denoiser."""

from __future__ import annotations

import pytest
import torch

from models.diffusion.denoiser import start_time
from models.diffusion.grids import grid
from models.diffusion.inverse import likelihood_guided, linearised, moment_matched, pseudo_inverse
from models.diffusion.operators import averaged, through
from models.diffusion.process import RectifiedFlow
from models.diffusion.samplers import dpmpp_2m
from tests.unit.models.diffusion.problems import (
    GAUSSIAN,
    MIXTURE,
    PATHS,
    PROBLEMS,
    SHAPE,
    SPREADS,
    WHITE,
    measured,
    normal,
    operator,
    posterior,
    standard_errors,
)

N = 4000


def points(path):
    """x [12, 1, 2, 2] about as large as the path has it, at times [12] from much noise to little."""
    t = torch.linspace(0.95, 0.02, 12, dtype=torch.float64)
    size = (path.alpha(t).square() + path.sigma(t).square()).sqrt()
    return size.reshape(-1, 1, 1, 1) * normal(12, 0)(0), t


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("deviation", [0.3, 1e-4])
def test_moment_matched_is_the_posteriors_denoiser_for_gaussian_data(problem, path, deviation):
    a, (x, t) = operator(problem, deviation), points(path)
    y = measured(problem, a)
    found = moment_matched(GAUSSIAN.denoiser(path), path, a, y)(x, t, {})
    expected = posterior(GAUSSIAN, a, y).denoiser(path)(x, t, {})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not found.requires_grad


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_white_covariances_are_exact_for_white_data(problem, path):
    a, (x, t) = operator(problem, 0.3), points(path)
    y = measured(problem, a)
    prior, expected = WHITE.denoiser(path), posterior(WHITE, a, y).denoiser(path)(x, t, {})
    torch.testing.assert_close(pseudo_inverse(prior, path, a, y)(x, t, {}), expected)
    if problem != "deblurring":  # A A^T is no multiple of the identity
        torch.testing.assert_close(likelihood_guided(prior, path, a, y, SPREADS[problem])(x, t, {}), expected)


def test_linearised_is_the_pseudo_inverse_of_a_linear_operator_and_follows_a_curved_one():
    path, a = RectifiedFlow(), operator("superresolution", 0.1)
    x, t = points(path)
    x, t, y = x[3:], t[3:], measured("superresolution", a)  # at much noise D is 0 there, and so is any pull
    prior = MIXTURE.denoiser(path)
    found = linearised(prior, path, a, y, solves=4)(x, t, {})
    torch.testing.assert_close(found, pseudo_inverse(prior, path, a, y)(x, t, {}), rtol=1e-4, atol=1e-4)

    def twice(z):
        return 2 * z + 0.1 * z.square()

    curved = through(twice, a)
    before = (y - curved.forward(prior(x, t, {}))).abs()
    after = (y - curved.forward(linearised(prior, path, curved, y, solves=4)(x, t, {}))).abs()
    assert (after <= before + 1e-6).all() and (after < 0.5 * before).any()


def test_without_noise_the_pseudo_inverse_puts_y_in_place():
    path, a = RectifiedFlow(), operator("superresolution", 0.0)
    x, t = points(path)
    y = measured("superresolution", a)
    found = pseudo_inverse(MIXTURE.denoiser(path), path, a, y)(x, t, {})
    torch.testing.assert_close(a.forward(found), y.expand(12, 1, 1, 1))
    plain = MIXTURE.denoiser(path)(x, t, {})
    torch.testing.assert_close(found - found.mean((2, 3), True), plain - plain.mean((2, 3), True))


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_likelihood_guided_is_a_gradient_through_denoiser_and_decoder(spread):
    """One sample at a time by differences; and the same of means as of a decoder that takes them."""
    path = RectifiedFlow()
    x, t = (part[3:5] for part in points(path))
    prior = MIXTURE.denoiser(path)
    a, decode = averaged(1, 0.3), lambda x0: x0.mean((2, 3), True)
    y = torch.full((1, 1, 1, 1), 0.2, dtype=torch.float64)
    found = likelihood_guided(prior, path, through(decode, a), y, spread)(x, t, {})
    torch.testing.assert_close(found, likelihood_guided(prior, path, averaged(2, 0.3), y, spread)(x, t, {}))

    def log(x, t):
        alpha2, sigma2 = path.alpha(t) ** 2, path.sigma(t) ** 2
        variance = 0.3**2 + spread * sigma2 / (alpha2 + sigma2)
        return -0.5 * (y - prior(x, t, {}).mean()).square().sum() / variance

    for row in range(2):
        one, at = x[row : row + 1], t[row : row + 1]
        for i in range(4):
            h = torch.zeros(1, 4, dtype=torch.float64)
            h[0, i] = 1e-5
            slope = (log(one + h.reshape(1, *SHAPE), at) - log(one - h.reshape(1, *SHAPE), at)) / 2e-5
            expected = prior(one, at, {}).flatten()[i] + path.sigma(at) ** 2 / path.alpha(at) * slope
            assert float(found[row].flatten()[i]) == pytest.approx(float(expected), abs=1e-6)


def walked(denoise, path, seed):
    """N samples of a denoiser, 40 steps."""
    times = grid("karras", 40, path, start_time(path, "eps"))
    return dpmpp_2m(denoise, path, path.sigma(times[0]) * normal(N, seed)(0), times, {})


@pytest.mark.parametrize("problem", PROBLEMS)
def test_samples_of_the_posterior_of_gaussian_data(problem):
    """40 steps of a second order sampler: mean and covariance within 3 standard errors. White covariances are not."""
    path, a = RectifiedFlow(), operator(problem, 0.3)
    y = measured(problem, a)
    law, prior = posterior(GAUSSIAN, a, y), GAUSSIAN.denoiser(path)
    assert standard_errors(walked(moment_matched(prior, path, a, y, solves=4), path, 1), law) < 3
    for spread in (0.0, SPREADS[problem]):
        assert standard_errors(walked(likelihood_guided(prior, path, a, y, spread), path, 1), law) > 5
    assert standard_errors(walked(pseudo_inverse(prior, path, a, y, solves=4), path, 1), law) > 5


def test_conditions_and_dtype_go_through():
    path, a = RectifiedFlow(), averaged(2, 0.3)
    x, t = (part.float() for part in points(path))
    told = {"class": torch.arange(12)}

    def denoise(x, t, condition):
        assert condition is told
        return 0.5 * x

    y = measured("superresolution", a).float()
    with torch.no_grad():  # as samplers are called
        for method in (moment_matched, pseudo_inverse, likelihood_guided):
            found = method(denoise, path, a, y)(x, t, told)
            assert found.shape == x.shape and found.dtype == torch.float32
