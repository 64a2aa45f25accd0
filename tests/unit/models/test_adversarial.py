"""The discriminator and its losses against what they are by definition."""

from __future__ import annotations

import pytest
import torch

from models.adversarial import Discriminator, adaptive_weight, generator_loss, hinge, r1


@pytest.mark.parametrize("layers", (1, 2, 3))
def test_a_logit_sees_a_patch_of_the_documented_size(layers: int) -> None:
    torch.manual_seed(0)
    network = Discriminator(1, width=8, layers=layers)
    for module in network.body:
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]  # it looks at the whole map
    image = torch.randn(1, 1, 160, 160, requires_grad=True)
    logits = network(image)
    assert logits.shape == (1, 1, 160 // 2**layers - 2, 160 // 2**layers - 2)
    middle = logits.shape[-1] // 2
    (seen,) = torch.autograd.grad(logits[0, 0, middle, middle], image)
    assert int((seen[0, 0].abs().sum(0) > 0).sum()) == 9 * 2**layers - 2


def test_a_sample_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    network, images = Discriminator(3, width=8, layers=1), torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_hinge_losses_are_the_formulas() -> None:
    real, fake = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([-3.0, 0.5, 0.0])
    assert hinge(real, fake).item() == pytest.approx(0.5 * (0 + 1 + 2) / 3 + 0.5 * (0 + 1.5 + 1) / 3)
    assert generator_loss(fake).item() == pytest.approx(2.5 / 3)


def test_r1_of_a_linear_network_is_the_square_of_its_weights() -> None:
    weights = torch.randn(12, requires_grad=True)
    images = torch.randn(5, 3, 2, 2, requires_grad=True)
    penalty = r1(images.flatten(1) @ weights, images)
    torch.testing.assert_close(penalty, weights.square().sum())
    (gradient,) = torch.autograd.grad(penalty, weights)
    torch.testing.assert_close(gradient, 2 * weights)


def test_the_adaptive_weight_is_a_bounded_ratio_of_norms() -> None:
    one, other = torch.full((4,), 3.0), torch.full((4,), 0.5)
    assert adaptive_weight(one, other).item() == pytest.approx(6 / (1 + 1e-4))
    assert adaptive_weight(one, torch.zeros(4)).item() == 1e4
