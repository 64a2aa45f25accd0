"""The tiny and the deep compression autoencoder: shapes, no variance, options that do not fit. Their numbers are held
against diffusers' in tests/unit/pipeline/generate/test_diffusers_autoencoders.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models import posterior, registry

TINY = {"kind": "tiny", "width": 8, "encoder": [1, 2, 1], "decoder": [1, 1, 1], "latent_channels": 3}
DC = {"kind": "dc", "widths": [8, 8, 16], "encoder": [0, 1, 1], "decoder": [0, 1, 1], "head_width": 8, "scales": [3],
      "attention": [False, False, True], "batch_norm": [True, True, False], "latent_channels": 4}  # fmt: skip


@pytest.mark.parametrize("options", [TINY, DC], ids=lambda options: options["kind"])
def test_images_to_latents_that_are_not_drawn_and_back(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model: Any = registry.build("autoencoders", options, channels=1).train()
    x = torch.rand(2, 1, 16, 8) * 2 - 1
    before = {name: value.clone() for name, value in model.named_buffers()}
    moments = model.encode(x)
    mean, log_variance = posterior.split(moments)
    assert model.factor == 4 and mean.shape == (2, options["latent_channels"], 4, 2) == (2, model.latent_channels, 4, 2)
    assert (log_variance == posterior.LOG_VARIANCE[0]).all()
    reconstruction, again = model(x, torch.randn_like(mean))
    assert torch.equal(reconstruction, model.decode(mean)) and torch.equal(again, moments)
    assert reconstruction.shape == x.shape
    one = model(x[:1], mean[:1])[0]  # an image does not depend on its neighbours, in training either
    torch.testing.assert_close(one, reconstruction[:1], rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    reconstruction.sum().backward()
    assert model.last_layer.weight.grad is not None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({**TINY, "decoder": [1, 1]}, "encoder: expected numbers of blocks for as many resolutions"),
        ({**TINY, "width": 0}, "width: expected at least 1"),
        ({**DC, "batch_norm": [True]}, "batch_norm: expected 3 values, as widths"),
        ({**DC, "encoder": [1, 1, 1]}, "decoder: expected blocks at the first resolution if and only if"),
        ({**DC, "encoder": [0, 0, 1]}, "encoder: expected at least 2 resolutions"),
        ({**DC, "widths": [8, 0, 16]}, "widths: expected at least 1"),
        ({**DC, "scales": [3, 0]}, "scales: expected at least 1"),
        ({**DC, "head_width": 0}, "head_width: expected at least 1, got 0"),
        ({**DC, "latent_channels": 0}, "latent_channels: expected at least 1, got 0"),
        ({**DC, "latent_channels": 5}, "latent_channels: expected a divisor of 16, got 5"),
        ({**DC, "widths": [8, 8, 24]}, "widths: expected each to divide"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        registry.make_config("autoencoders", options)
