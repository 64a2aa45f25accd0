"""Averages by half-life."""

from __future__ import annotations

import pytest
import torch

from models import ema


def test_half_life_is_in_samples_whatever_the_batch():
    for batch in (1, 8, 64):
        average = [torch.ones(3)]
        for _ in range(256 // batch):
            ema.update(average, [torch.zeros(3)], ema.decay(batch, 256.0))
        torch.testing.assert_close(average[0], torch.full((3,), 0.5), rtol=1e-5, atol=0)


def test_a_still_weight_leaves_its_average_bit_equal_and_dtypes_mix():
    live = [torch.randn(5, generator=torch.Generator().manual_seed(0)).bfloat16()]
    average = [live[0].float()]
    ema.update(average, live, 0.999)
    assert average[0].dtype == torch.float32 and torch.equal(average[0], live[0].float())


def test_parameters_and_empty_lists():
    layer = torch.nn.Linear(2, 2)
    averages = [torch.zeros_like(p) for p in layer.parameters()]
    ema.update(averages, list(layer.parameters()), 0.75)
    torch.testing.assert_close(averages[0], 0.25 * layer.weight.detach())
    assert not averages[0].requires_grad
    ema.update([], [], 0.5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="half_life"):
        ema.decay(0, 10.0)
    with pytest.raises(ValueError, match="zip"):
        ema.update([torch.zeros(1)], [], 0.5)
