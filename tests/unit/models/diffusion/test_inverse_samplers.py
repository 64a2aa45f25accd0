"""Chains and particles against the posterior in closed form: samples' mean and covariance within 3 standard errors."""

from __future__ import annotations

import pytest
import torch

from models.diffusion.denoiser import start_time
from models.diffusion.grids import grid
from models.diffusion.inverse import moment_matched, pseudo_inverse
from models.diffusion.inverse_samplers import _root, gibbs, gibbs_times, repaint, twisted
from models.diffusion.operators import averaged, masked, through
from models.diffusion.process import RectifiedFlow
from models.diffusion.samplers import dpmpp_2m
from tests.unit.models.diffusion.problems import (
    GAUSSIAN,
    LAWS,
    MASK,
    MIXTURE,
    PATHS,
    PROBLEMS,
    SHAPE,
    SPREADS,
    matrix,
    measured,
    normal,
    operator,
    posterior,
    standard_errors,
    uniform,
)

N, S = 4000, 0.5  # samples; deviation of y's noise
PATH = RectifiedFlow()


def start(path, kind, steps, noise):
    times = grid(kind, steps, path, start_time(path, "eps"))
    return path.sigma(times[0]) * noise(0), times


@pytest.mark.parametrize(
    ("problem", "law", "sweeps"),
    [
        ("inpainting", "gaussian", 40),
        ("inpainting", "mixture", 40),
        ("deblurring", "mixture", 30),
        ("superresolution", "gaussian", 20),
        ("superresolution", "mixture", 20),
    ],
)
def test_gibbs_reaches_the_posterior(problem, law, sweeps):
    """Sweeps of 10 steps from a walk that is far from it: of `pseudo_inverse` for the Gaussian, for which
    `moment_matched` is exact, and of that for the mixture."""
    data, a, noise = LAWS[law], operator(problem, S), normal(N, 0)
    y = measured(problem, a)
    expected, prior = posterior(data, a, y), data.denoiser(PATH)
    near = pseudo_inverse if law == "gaussian" else moment_matched
    x, times = start(PATH, "karras", 30, noise)
    first = dpmpp_2m(near(prior, PATH, a, y, solves=4), PATH, x, times, {})
    assert standard_errors(first, expected) > 3
    found = gibbs(prior, PATH, first, gibbs_times(PATH, a, 10), {}, noise, a, y, sweeps)
    assert standard_errors(found, expected) < 3


@pytest.mark.parametrize("problem", PROBLEMS)
def test_twisted_reaches_the_posterior(problem):
    """20 sets of 200 particles, of a mixture, each mode with its weight; standard errors between sets. `ddpm` is of
    first order in law, so 200 steps, not 30."""
    a, noise = operator(problem, S), normal(N, 0)
    y = measured(problem, a)
    x, times = start(PATH, "uniform", 200, noise)
    prior, spread = MIXTURE.denoiser(PATH), SPREADS[problem]
    found = twisted(prior, PATH, x, times, {}, noise, a, y, spread, 200, uniform(20, 0))
    assert standard_errors(found, posterior(MIXTURE, a, y), sets=20) < 3


def test_twisted_through_a_decoder():
    """An operator that is not Linear: means of what a linear decoder makes are means of x0 half as large."""
    prior, noise = MIXTURE.denoiser(PATH), normal(32, 0)
    a = operator("superresolution", S)
    y = measured("superresolution", a)
    x, times = start(PATH, "uniform", 20, noise)
    plain = twisted(prior, PATH, x, times, {}, normal(32, 1), a, y, 0.25, 8, uniform(4, 0))
    decoded = through(lambda x0: 0.5 * x0.repeat_interleave(2, -1).repeat_interleave(2, -2), averaged(4, S / 2))
    found = twisted(prior, PATH, x, times, {}, normal(32, 1), decoded, 0.5 * y, 0.0625, 8, uniform(4, 0))
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("name", ["gibbs", "twisted", "repaint"])
def test_they_know_a_path_by_its_noise_levels_only(name):
    a = operator("inpainting", S)
    y = measured("inpainting", a)
    levels = torch.tensor([S / 2**0.5, 0.2, 0.1, 0.03, 0.0], dtype=torch.float64)
    if name != "gibbs":
        levels = torch.cat([torch.tensor([50.0, 5.0, 1.0], dtype=torch.float64), levels])
    ends = []
    for path in PATHS:
        prior, noise, times = MIXTURE.denoiser(path), normal(8, 0), path.at(levels)
        x = path.alpha(times[0]) * levels[0] * noise(0)
        if name == "gibbs":
            ends.append(gibbs(prior, path, noise(0), times, {}, noise, a, y, sweeps=2))
        elif name == "twisted":
            ends.append(twisted(prior, path, x, times, {}, noise, a, y, 1.0, 4, uniform(2, 0)))
        else:
            ends.append(repaint(prior, path, x, times, {}, noise, MASK, y, again=3))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_gibbs_begins_where_its_noise_is_within_that_of_y(path):
    a = operator("superresolution", S)
    times = gibbs_times(path, a, 4)
    levels = path.sigma(times) / path.alpha(times)
    assert len(times) == 5 and times[-1] == 0
    assert float(levels[0]) == pytest.approx(S / 0.5 / 2**0.5) and float(levels[3] / levels[0]) == pytest.approx(1 / 20)
    for problem in ("inpainting", "deblurring"):  # their |A| is twice as large
        with pytest.raises(ValueError, match=r"rho = 0\.707"):
            gibbs(
                MIXTURE.denoiser(path),
                path,
                torch.zeros(1, *SHAPE),
                times,
                {},
                normal(1, 0),
                operator(problem, S),
                0,
                1,
            )


@pytest.mark.parametrize("problem", PROBLEMS)
def test_root_of_the_covariance(problem):
    a = operator(problem, 1.0)
    share = 0.5 / a.norm**2
    rows = matrix(a)
    covariance = torch.eye(4, dtype=torch.float64) - share * rows.T @ rows
    root = _root(a, share, torch.eye(4, dtype=torch.float64).reshape(4, *SHAPE)).flatten(1)
    torch.testing.assert_close(root @ root.T, covariance, rtol=1e-4, atol=1e-4)


def test_repaint_is_biased_however_often_it_resamples():
    """Of Gaussian data, 40 steps: one pass leaves mean and covariance wrong; with 10 the mean is right, and the
    variance too small, as each of the 10 is a step of `ddpm` of the same size."""
    a, noise = operator("inpainting", 0.0), normal(N, 0)
    y = measured("inpainting", a)
    law, hidden = posterior(GAUSSIAN, masked(MASK, 1e-6), y), [1, 2]
    mean, covariance = law.means[0][hidden], law.covariances[0][hidden][:, hidden]
    x, times = start(PATH, "uniform", 40, noise)
    found = {}
    for again in (1, 10):
        ends = repaint(GAUSSIAN.denoiser(PATH), PATH, x, times, {}, noise, MASK, y, again).flatten(1)
        torch.testing.assert_close(ends[:, [0, 3]], y.flatten()[[0, 3]].expand(N, 2))
        off = (ends[:, hidden].mean(0) - mean) / (covariance.diagonal() / N).sqrt()
        found[again] = float(off.abs().max()), ends[:, hidden].var(0) / covariance.diagonal()
    assert found[1][0] > 5 and found[10][0] < 3
    assert found[10][1].max() < 0.85
