"""The posterior's algebra against torch.distributions."""

from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from models import posterior


def moments() -> torch.Tensor:
    return torch.randn(3, 8, 2, 2, generator=torch.Generator().manual_seed(0))


def test_kl_is_torchs():
    mean, log_variance = posterior.split(moments())
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(posterior.kl(moments()), expected)
    assert torch.equal(posterior.kl(torch.zeros(2, 8, 2, 2)), torch.zeros(2))


def test_sample_is_mean_plus_deviation_times_noise():
    mean, log_variance = posterior.split(moments())
    noise = torch.ones_like(mean)
    torch.testing.assert_close(
        posterior.sample(moments(), noise),
        Normal(mean, (0.5 * log_variance).exp()).icdf(torch.special.ndtr(noise)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_clamp_holds_the_log_variance_only_and_fits_float16():
    wild = torch.cat([torch.full((1, 2, 1, 1), 90.0), torch.tensor([1e9, -1e9]).reshape(1, 2, 1, 1)], dim=1)
    held = posterior.clamp(wild)
    assert held.flatten().tolist() == [90.0, 90.0, 20.0, -30.0]
    assert torch.isfinite(held.half()).all() and torch.isfinite(posterior.kl(held)).all()
