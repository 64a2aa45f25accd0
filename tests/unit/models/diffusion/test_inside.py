"""Terms on tokens in the middle: against their equations written out, and the same however a batch is divided."""

from __future__ import annotations

import math

import pytest
import torch

from models.diffusion import inside


def test_dispersion_is_the_log_of_the_mean_over_pairs_of_a_group() -> None:
    z = torch.randn(2 * inside.GROUP, 3, 5, generator=torch.Generator().manual_seed(0))
    each = inside.dispersion(z)
    for group in range(2):
        rows = z[group * inside.GROUP :][: inside.GROUP].flatten(1).tolist()
        pairs = [math.exp(-sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / 15) for p in rows for q in rows]
        wanted = math.log(sum(pairs) / len(pairs))
        torch.testing.assert_close(each[group * inside.GROUP :][: inside.GROUP], torch.full((inside.GROUP,), wanted))
    halves = torch.cat([inside.dispersion(half) for half in z.chunk(2)])
    torch.testing.assert_close(each, halves)
    assert inside.dispersion(torch.ones_like(z)).tolist() == pytest.approx(
        [0.0] * len(z)
    )  # all alike: the most there is
    assert inside.dispersion(100 * z)[0].item() == pytest.approx(-math.log(inside.GROUP))  # only each with itself
    with pytest.raises(ValueError, match="multiple of 16"):
        inside.dispersion(z[:-1])


def test_dispersing_spreads() -> None:
    z = torch.randn(inside.GROUP, 2, 4, generator=torch.Generator().manual_seed(0)).mul_(0.1).requires_grad_()
    before = z.detach().std(0).mean()
    for _ in range(20):
        (gradient,) = torch.autograd.grad(inside.dispersion(z).mean(), z)
        z = (z - 10 * gradient).detach().requires_grad_()
    assert z.std(0).mean() > 1.5 * before


def test_near_and_alike() -> None:
    h, teacher = torch.zeros(2, 3, 4), torch.full((2, 3, 4), 0.01)
    teacher[1] = 1.0
    torch.testing.assert_close(inside.near(h, teacher), torch.tensor([0.5 * 0.01**2 / 0.05, 1 - 0.5 * 0.05]))
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(inside.alike(x, 3 * x), torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(inside.alike(x, -x), torch.tensor([1.0, 1.0]))


def test_features_of_another_grid() -> None:
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert inside.on_grid(maps, 4, 4)[0, :, 0].tolist() == list(range(16))
    small = inside.on_grid(maps, 2, 2)[0, :, 0]
    assert small.tolist() == sorted(small.tolist()) and small.mean() == pytest.approx(7.5)  # row by row
