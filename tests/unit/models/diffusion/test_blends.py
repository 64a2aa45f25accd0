"""The sphere between two noises, and statistics of one on another: identities that must hold."""

from __future__ import annotations

import torch

from models.diffusion.blends import adain, slerp


def test_slerp_has_its_ends_and_stays_on_the_sphere() -> None:
    x, y = torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).unbind(0)
    way = slerp(x, y, torch.linspace(0, 1, 5))
    assert torch.allclose(way[:1], x, atol=1e-6) and torch.allclose(way[-1:], y, atol=1e-6)
    norms = way.flatten(1).norm(dim=1) / x.norm()
    assert (norms - 1).abs().max() < 0.03  # half of each would have 0.71
    assert torch.allclose(slerp(x, x, torch.tensor([0.3])), x, atol=1e-6)  # one direction: no 0 / 0


def test_adain_takes_statistics_and_keeps_the_layout() -> None:
    x, y = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    y = 3 * y + 1
    made = adain(x, y)
    for of in (torch.mean, torch.std):
        assert torch.allclose(of(made, (2, 3)), of(y, (2, 3)), atol=1e-5)
    assert torch.allclose(adain(made, x), x, atol=1e-5)  # undone by its own statistics
    assert adain(torch.zeros_like(x), y).isfinite().all()
