"""DDPM's thousand steps as a path: its products at whole steps, and what a path promises in between."""

from __future__ import annotations

import math

import pytest
import torch

from models.diffusion.process import VariancePreserving, add_noise, make_path, noise_level
from models.diffusion.steps import SCHEDULES, Steps

WHOLE = torch.arange(1001, dtype=torch.float64) / 1000
BETAS = {
    "ddpm_linear": torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64),
    "ddpm_scaled_linear": torch.linspace(1e-4**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2,
    "ddpm_cosine": torch.tensor(
        [min(0.999, 1 - (math.cos((k + 9) / 1008 * math.pi / 2) / math.cos((k + 8) / 1008 * math.pi / 2)) ** 2)
         for k in range(1000)], dtype=torch.float64),
}  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_whole_steps_are_products(schedule: str) -> None:
    path = make_path("variance_preserving", schedule)
    products = torch.cumprod(1 - BETAS[schedule], 0)
    torch.testing.assert_close(path.alpha(WHOLE)[1:].square(), products, rtol=1e-9, atol=0)
    torch.testing.assert_close(path.sigma(WHOLE)[1:].square(), 1 - products, rtol=1e-9, atol=0)
    assert path.alpha(WHOLE)[0] == 1 and path.sigma(WHOLE)[0] == 0
    assert torch.equal(path.scale(WHOLE), torch.ones_like(WHOLE))
    told = 1000 * path.clock(WHOLE.float())  # step k is told k
    torch.testing.assert_close(told, (torch.arange(1001) - 1.0).clamp(min=0), rtol=1e-7, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_between_steps_it_is_a_path(schedule: str) -> None:
    path = Steps(schedule)
    t = torch.linspace(0.00037, 0.9991, 97, dtype=torch.float64).requires_grad_()  # no whole steps
    (d_alpha,) = torch.autograd.grad(path.alpha(t).sum(), t)
    (d_sigma,) = torch.autograd.grad(path.sigma(t).sum(), t)
    t = t.detach()
    a, b = path.direction(t)
    torch.testing.assert_close(path.speed(t) * a, d_alpha, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(path.speed(t) * b, d_sigma, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(path.at(noise_level(path, t)), t, rtol=1e-9, atol=1e-12)
    ends = path.at(torch.tensor([0.0, 1e9, math.inf], dtype=torch.float64))
    assert ends.tolist() == [0.0, 1.0, 1.0]
    x = torch.ones(97, 2)
    assert add_noise(path, x, -x, t.float()).dtype == torch.float32


def test_the_linear_path_is_its_limit() -> None:
    limit = VariancePreserving("linear").alpha(WHOLE)[:501]
    torch.testing.assert_close(Steps().alpha(WHOLE)[:501], limit, rtol=0.005, atol=0)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"path\.betas: expected 0 < first <= last < 1, got \[0\.02, 0\.01\]"):
        make_path("variance_preserving", "ddpm_linear", [0.02, 0.01])
    with pytest.raises(ValueError, match=r"path\.schedule"):
        Steps("ddpm")
