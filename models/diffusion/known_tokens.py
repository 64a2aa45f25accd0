"""Sampling of latents of which some decoded tokens are known: a denoiser that is pulled to them, without training.

The answer x0 of a denoiser at (x_t, t) is moved to the most likely latents under N(x0, r^2) that say the known tokens,

    argmin_z  |z - x0|^2 / (2 r^2) - sum over known places i of log p(token_i | z),

with r^2 = s^2 / (1 + s^2), the variance of data of variance 1 given x_t at noise level s, as in DiffPIR (Zhu et al.
2023, eq. 12): a step of a walk then goes towards it. How near the known tokens are is asked of the decoder, so that no
latent has to be known as a whole.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.autoencoders.text import surprise
from models.conditioning import Conditions
from models.diffusion.denoiser import Denoiser
from models.diffusion.process import Path, noise_level

STEPS, RATE = 10, 0.3  # of Adam, at each answer; its rate in units of r
LEAST = 0.1  # r at least: else the last answers could not be moved


def held(
    denoise: Denoiser,
    path: Path,
    near: Callable[[Tensor], Callable[[Tensor], Tensor]],
    tokens: Tensor,
    known: Tensor,
    steps: int = STEPS,
) -> Denoiser:
    """A denoiser whose answers say the known tokens. near: an answer x0 [n, C, l] -> the decoder about there, of
    latents to logits [n, L, V], differentiable; tokens int64 [n, L], known bool [n, L]: what is in other places is not
    looked at. t is one time for all."""

    def with_known(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        x0 = denoise(x, t, condition)
        level = max(float(noise_level(path, t[0])), 1e-6)
        r = max(LEAST, (1 + level**-2) ** -0.5)  # 1 where there is noise alone
        decode, z = near(x0.detach()), x0.detach().clone()
        first, second = torch.zeros_like(z), torch.zeros_like(z)
        for step in range(1, steps + 1):
            with torch.enable_grad():
                z.requires_grad_()
                nats = surprise(decode(z), tokens)  # [n, L]
                energy = (nats * known).sum() + (z - x0).square().sum() / (2 * r**2)
                (slope,) = torch.autograd.grad(energy, z)
            z = z.detach()
            first, second = 0.8 * first + 0.2 * slope, 0.95 * second + 0.05 * slope.square()
            scaled = (first / (1 - 0.8**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
            z = z - RATE * r * (1 - (step - 1) / steps) * scaled  # Kingma & Ba 2014, by element: samples do not meet
        return z

    return with_known
