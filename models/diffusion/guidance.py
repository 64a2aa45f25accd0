"""Classifier-free guidance: a denoiser in, a denoiser out."""

from __future__ import annotations

import torch
from torch import Tensor

from models.conditioning import Conditions
from models.diffusion.denoiser import Denoiser


def guided(denoise: Denoiser, scale: float, null: Conditions) -> Denoiser:
    """x0 = null + scale * (conditional - null), in one evaluation of twice the batch (Ho and Salimans 2022, eq. 6).

    `scale` 1 is the plain denoiser, 0 the unconditional one. `null` has one row a sample (or one row for all). At a
    given (x, t) every prediction is affine in x0, so guiding x0 is guiding eps, v or velocity with the same scale.
    """
    if scale == 1.0 or not null:  # without a condition both terms are one
        return denoise

    def with_guidance(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        n = x.shape[0]
        both = {name: torch.cat([value, null[name].expand_as(value)]) for name, value in condition.items()}
        conditional, unconditional = denoise(torch.cat([x, x]), torch.cat([t, t]), both).split(n)
        x0: Tensor = unconditional + scale * (conditional - unconditional)
        return x0

    return with_guidance
