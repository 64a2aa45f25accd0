"""Guidance as algebra on a denoiser that is a formula."""

from __future__ import annotations

import pytest
import torch

from models.diffusion.guidance import guided


def denoise(x, t, condition):
    return x * t[:, None] + condition["class"][:, None]


X, T = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.5, 0.25])
CONDITION, NULL = {"class": torch.tensor([3, 5])}, {"class": torch.tensor([10, 10])}


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("null", [NULL, {"class": torch.tensor([10])}], ids=["a row each", "one row"])
def test_guided_is_null_plus_scaled_difference(scale, null):
    expected = denoise(X, T, NULL) + scale * (denoise(X, T, CONDITION) - denoise(X, T, NULL))
    torch.testing.assert_close(guided(denoise, scale, null)(X, T, CONDITION), expected)


def test_scale_one_costs_nothing_and_others_one_call():
    assert guided(denoise, 1.0, NULL) is denoise
    sizes = []

    def counting(x, t, condition):
        sizes.append(len(x))
        return denoise(x, t, condition)

    guided(counting, 3.0, NULL)(X, T, CONDITION)
    assert sizes == [4]
