"""Shared layers against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models import layers
from models.layers import (
    MLP,
    Attention,
    GatedMLP,
    TimeEmbedding,
    gated_sum,
    modulated_norm,
    time_features,
)


def test_modulated_norm_and_gate():
    generator = torch.Generator().manual_seed(0)
    x, (shift, scale) = torch.randn(2, 5, 8, generator=generator), torch.randn(2, 2, 8, generator=generator)
    expected = F.layer_norm(x, (8,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(modulated_norm(x, shift, scale), expected)
    torch.testing.assert_close(gated_sum(x, scale, 2 * x), x + scale[:, None] * 2 * x)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_softmax_of_scores(qk_norm):
    torch.manual_seed(0)
    layer = Attention(12, heads=3, qk_norm=qk_norm)
    x = torch.randn(2, 7, 12)
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    heads = []
    for i in range(3):
        part = slice(4 * i, 4 * i + 4)
        a, b = q[..., part], k[..., part]
        if qk_norm:
            a, b = (c / (c.square().mean(-1, keepdim=True) + 1e-6).sqrt() for c in (a, b))
        heads.append(torch.softmax(a @ b.transpose(1, 2) / 2.0, dim=-1) @ v[..., part])
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, -1)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="heads"):
        Attention(12, heads=5)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_weights_are_what_attend_weighs_values_with(masked):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 5, 4, generator=generator), torch.randn(2, 3, 6, 4, generator=generator)
    mask = (torch.arange(6) < torch.tensor([[2], [6]]))[:, None, None] if masked else None  # [n, 1, 1, S]
    values = torch.eye(6).expand(2, 3, 6, 6)  # what is attended to says its own place
    expected = layers.attend(q, k, values, mask).mean(1)
    torch.testing.assert_close(layers.attention_weights(q, k, mask), expected)


def test_mlp_keeps_shape():
    assert MLP(4, 16)(torch.zeros(2, 3, 4)).shape == (2, 3, 4)
    gated, x = GatedMLP(4, 16), torch.randn(2, 3, 4)
    first, second = gated.up(x)[..., :16], gated.up(x)[..., 16:]
    torch.testing.assert_close(gated(x), gated.down(first * first.sigmoid() * second))


def test_time_features_are_ddpms_at_a_thousand_t():
    t = torch.tensor([0.0, 0.001, 0.5, 1.0], dtype=torch.float64)
    features = time_features(t, 8)
    assert features.dtype == torch.float32 and features.shape == (4, 8)
    for row, step in zip(features.tolist(), (0, 1, 500, 1000), strict=True):
        angles = [step * 10000 ** (-i / 4) for i in range(4)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert row == pytest.approx(expected, abs=1e-3)
    assert TimeEmbedding(12)(t).shape == (4, 12)


def test_time_embedding_tells_near_and_far_times_apart():
    features = time_features(torch.tensor([0.5, 0.501, 0.6]), 256)
    near, far = (features[0] - features[1]).norm(), (features[0] - features[2]).norm()
    assert 0.5 < near < far


def test_the_last_frequency_of_the_time():
    """shift 1: 1/10000 is reached at the last one; shift 0: it would be the next."""
    t, width = torch.tensor([1.0]), 64
    for shift in (0, 1):
        expected = layers.TIME_SCALE * 10000.0 ** (-31 / (32 - shift))
        torch.testing.assert_close(layers.time_features(t, width, shift)[0, -1], torch.tensor(expected).sin())


def test_a_norm_by_the_root_mean_square_keeps_the_mean():
    x, zero = torch.randn(2, 3, 8) + 5, torch.zeros(2, 8)
    plain, rms = layers.modulated_norm(x, zero, zero), layers.modulated_norm(x, zero, zero, rms=True)
    torch.testing.assert_close(plain.mean(-1), torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(rms, x / x.square().mean(-1, keepdim=True).sqrt())
