"""Costs counted on the meta device, against formulas and torch's counter on real tensors."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import costs, registry
from models.autoencoders import kl
from models.backbones import dit, unet
from models.conditioning import Embedded


@pytest.mark.parametrize("preset", ["dit-xxs/8", "diffusers-s/2"])
def test_a_dit_costs_what_the_formula_says(preset):
    options = {"kind": "dit", "preset": preset}
    cost = costs.backbone(options, 4, 32)
    assert cost.flops == dit.flops(registry.make_config("backbones", options), 4, 32)
    assert cost.parameters == registry.parameters("backbones", options, channels=4, size=32)


def test_a_unet_costs_what_torch_counts_on_real_tensors():
    options = {"kind": "unet", "preset": "tiny"}
    model = unet.Model(registry.make_config("backbones", options), 3, 8)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 8, 8), torch.rand(1), Embedded(torch.randn(1, 128)))
    assert costs.backbone(options, 3, 8) == (sum(p.numel() for p in model.parameters()), counter.get_total_flops())


def test_a_codebook_is_counted_on_the_meta_device():
    cost = costs.autoencoder({"kind": "vq", "preset": next(iter(registry.presets("autoencoders", "vq")))}, 3, 32)
    assert cost.parameters > 0 and cost.flops > 0


def test_an_autoencoder_without_attention_by_hand():
    """One level, one block: the convolutions' products, two FLOPs each, at every pixel."""
    options = {"kind": "kl", "width": 8, "multipliers": (1,), "blocks": 1, "latent_channels": 2, "groups": 4,
               "attention": False}  # fmt: skip
    w, c, z = 8, 3, 2
    encoder = 9 * (c * w + 6 * w * w + w * 2 * z) + (2 * z) ** 2
    decoder = z**2 + 9 * (z * w + 8 * w * w + w * c)
    cost = costs.autoencoder(options, c, 16)
    assert cost.flops == 2 * 16 * 16 * (encoder + decoder)
    assert cost.parameters == sum(
        p.numel() for p in kl.Model(registry.make_config("autoencoders", options), 3).parameters()
    )
