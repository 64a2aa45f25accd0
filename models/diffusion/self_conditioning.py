"""Self-conditioning (Chen et al. 2022, "Analog Bits", section 3.2): the network is told its own last guess of x0, as
channels beside x_t (`GUESS`).

In training the guess is the network's answer to the same x_t without one, half of the time, and gives no gradient; in
sampling it is what the step before gave, guidance and all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.conditioning import GUESS, PLACES, Conditions
from models.diffusion.denoiser import Denoiser, denoiser
from models.diffusion.process import Path, add_noise

SHARE = 0.5  # of training samples that are told a guess


def told(
    network: nn.Module,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Conditions,
    path: Path,
    prediction: str,
    u: Tensor | None = None,
) -> Conditions:
    """The condition with a guess [n, C, *sides] beside it, for `objectives.loss` of the same arguments. u: uniform
    draws in (0, 1), [n], one for each sample, which say who is told one; none: all are. Others are told zeros."""
    x, t = add_noise(path, x0.float(), noise.float(), t.float()), t.float()
    with torch.no_grad():
        guess = denoiser(network, path, prediction)(x, t, {**condition, GUESS: torch.zeros_like(x)})
    if u is not None:
        guess = guess * (u < SHARE).to(guess).reshape(-1, *[1] * (guess.dim() - 1))
    return {**condition, GUESS: guess.detach()}


def remembering(denoise: Denoiser) -> Denoiser:
    """A denoiser that is told what it has answered before, at as much noise or more: of one walk. Where t is larger
    than the last one, or the samples are others in shape, another walk begins, with a guess of zeros."""
    last: tuple[float, Tensor] | None = None

    def remembered(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        nonlocal last
        now = float(t.max())
        known = last is not None and last[1].shape == x.shape and now <= last[0]
        guess = last[1] if known and last is not None else torch.zeros_like(x)
        if PLACES in condition:
            guess = guess.masked_fill(~condition[PLACES][:, None], 0.0)
        found = denoise(x, t, {**condition, GUESS: guess})
        last = (now, found.detach())
        return found

    return remembered
