"""What a model costs: its parameters, and the FLOPs of a forward pass as torch counts them. Nothing is allocated.

Any kind that the registry finds is counted, by running its code on the meta device, where tensors have shapes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import registry
from models.conditioning import Embedded


class Cost(NamedTuple):
    """Of one model."""

    parameters: int  # without the table of classes
    flops: int  # matrix products and convolutions of one sample's forward pass, two FLOPs a multiply-add


def backbone(options: Mapping[str, Any], channels: int, size: int) -> Cost:
    """Cost of a backbone on latents [channels, size, size]. ValueError where it does not fit them."""
    model: Any = registry.outline("backbones", options, channels=channels, size=size)
    with torch.device("meta"):
        inputs = (torch.empty(1, channels, size, size), torch.empty(1), Embedded(torch.empty(1, model.condition_width)))
    return Cost(_parameters(model), _count(lambda: model(*inputs)))


def autoencoder(options: Mapping[str, Any], channels: int, size: int) -> Cost:
    """Cost of an autoencoder on images [channels, size, size]: encoder and decoder."""
    model: Any = registry.outline("autoencoders", options, channels=channels)
    side = size // model.factor
    with torch.device("meta"):
        x, z = torch.empty(1, channels, size, size), torch.empty(1, model.latent_channels, side, side)
    return Cost(_parameters(model), _count(lambda: model.encode(x)) + _count(lambda: model.decode(z)))


def _parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _count(forward: Any) -> int:
    # torch's counter knows the two products of the plain attention, not those of every fused one
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward()
    return int(counter.get_total_flops())
