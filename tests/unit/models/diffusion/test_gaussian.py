"""The closed forms themselves, against integrals that can be done by hand and against plain averages."""

from __future__ import annotations

import math

import pytest
import torch

from models.diffusion.gaussian import gaussian_denoiser, gaussian_loss, mixture_denoiser
from models.diffusion.objectives import PREDICTIONS, Times, convert, target, weight
from models.diffusion.process import EDM, SCHEDULES, RectifiedFlow, VariancePreserving, add_noise

PATHS = [RectifiedFlow(), *map(VariancePreserving, SCHEDULES), EDM()]


def law(d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A mean and a full covariance."""
    generator = torch.Generator().manual_seed(d)
    factor = torch.randn(d, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
    return torch.randn(d, generator=generator, dtype=torch.float64), factor @ factor.T + 0.05 * torch.eye(d)


def test_rectified_flow_loss_is_half_pi_root_variance():
    """integral of l / ((1 - t)^2 l + t^2) over [0, 1] is pi/2 sqrt(l)."""
    values = torch.tensor([0.01, 0.3, 1.0, 4.0])
    expected = float(values.double().sqrt().mean()) * math.pi / 2
    assert gaussian_loss(values, RectifiedFlow(), "velocity", Times()) == pytest.approx(expected, rel=1e-6)


def test_cosine_v_loss_of_white_data_is_one():
    """alpha^2 + sigma^2 = 1, so l = 1 gives 1 at each time, whatever their distribution."""
    for times in (Times(), Times("logit_normal", 0.5, 1.5)):
        for path in (VariancePreserving("cosine"), EDM()):
            assert gaussian_loss(torch.ones(3), path, "v", times) == pytest.approx(1.0, abs=1e-12)


def test_loss_that_has_no_mean_is_infinite():
    linear = VariancePreserving("linear")
    assert gaussian_loss(torch.ones(2), linear, "velocity", Times()) == math.inf
    assert math.isfinite(gaussian_loss(torch.ones(2), linear, "velocity", Times(), "min_snr"))
    assert math.isfinite(gaussian_loss(torch.ones(2), linear, "velocity", Times("logit_normal")))


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", ["uniform", "min_snr", "edm"])
def test_loss_is_what_the_ideal_denoiser_measures(path, prediction, weighting):
    """A plain average of the ideal denoiser's loss over draws comes to the closed form (times away from t = 0)."""
    mean, covariance = law(4)
    times, n = Times("logit_normal", 0.3, 0.7), 40_000
    generator = torch.Generator().manual_seed(11)
    x0 = mean + torch.randn(n, 4, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    eps = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    t = times((torch.randperm(n, generator=generator).double() + 0.5) / n, path)
    x = add_noise(path, x0, eps, t)
    p = convert("x0", prediction, gaussian_denoiser(mean, covariance, path)(x, t, {}), x, t, path)
    error = (p - target(prediction, x0, eps, t, path)).square().mean(1) * weight(weighting, prediction, t, path)
    expected = gaussian_loss(torch.linalg.eigvalsh(covariance), path, prediction, times, weighting)
    # within 4 standard errors of the average
    assert abs(float(error.mean()) - expected) < 4 * float(error.std()) / math.sqrt(n)


def test_mixture_of_one_is_the_gaussian_and_keeps_shape():
    mean, covariance = law(4)
    path, x, t = RectifiedFlow(), torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.linspace(0.1, 1, 5).double()
    one = gaussian_denoiser(mean, covariance, path)(x, t, {})
    assert one.shape == x.shape
    torch.testing.assert_close(mixture_denoiser([1.0], [mean], [covariance], path)(x, t, {}), one)


def test_mixture_score_is_the_gradient_of_its_log_density():
    """Tweedie: alpha x0 = x + sigma^2 grad log p(x); p computed here on its own."""
    weights, means, scales = [0.3, 0.7], [-1.0, 2.0], [0.2, 0.5]
    path = VariancePreserving("cosine")
    x = torch.linspace(-3, 3, 31, dtype=torch.float64)[:, None].requires_grad_()
    t = torch.full((31,), 0.4, dtype=torch.float64)
    alpha, sigma = float(path.alpha(t[0])), float(path.sigma(t[0]))
    density = torch.zeros_like(x)
    for w, m, s in zip(weights, means, scales, strict=True):
        variance = (alpha * s) ** 2 + sigma**2
        density = density + w / math.sqrt(variance) * torch.exp(-((x - alpha * m) ** 2) / (2 * variance))
    (score,) = torch.autograd.grad(density.log().sum(), x)
    denoise = mixture_denoiser(
        weights,
        [torch.tensor([m], dtype=torch.float64) for m in means],
        [torch.tensor([[s * s]], dtype=torch.float64) for s in scales],
        path,
    )
    expected = (x.detach() + sigma**2 * score) / alpha
    torch.testing.assert_close(denoise(x.detach(), t, {}), expected, rtol=1e-9, atol=1e-9)
