"""Guidance: a denoiser in, a denoiser out. At a given (x, t) every prediction is affine in x0, so guiding x0 is guiding
eps, v or velocity with the same scale. What a null condition does not name (`PLACES`, `GUESS`) is no condition: it
stays.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from models.conditioning import GUESS, PLACES, Conditions
from models.diffusion.denoiser import Denoiser
from models.diffusion.process import Path, noise_level


def guided(denoise: Denoiser, scale: float, null: Conditions, rescale: float = 0.0) -> Denoiser:
    """x0 = null + scale * (conditional - null), in one evaluation of twice the batch (Ho and Salimans 2022, eq. 6).

    `scale` 1 is the plain denoiser, 0 the unconditional one. `null` has one row a sample (or one row for all).
    """
    if scale == 1.0 or not null:  # without a condition both terms are one
        return denoise

    def with_guidance(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        n = x.shape[0]
        both = {name: torch.cat([value, _nothing(null, name, value)]) for name, value in condition.items()}
        conditional, unconditional = denoise(torch.cat([x, x]), torch.cat([t, t]), both).split(n)
        return _away(conditional, unconditional, scale, rescale, condition.get(PLACES))

    return with_guidance


def composed(
    denoise: Denoiser, terms: Sequence[tuple[float, Conditions]], null: Conditions, rescale: float = 0.0
) -> Denoiser:
    """x0 = D(null) + sum_i s_i (D(c_i) - D(null)) for `terms` (s_i, c_i), in one evaluation of a batch for each and one
    for the null (Liu et al. 2022, "Compositional Visual Generation with Composable Diffusion Models", eq. 11).

    A term has a row a sample; what it does not tell is that of `null` in it (`only`). One term of all that is told is
    `guided`. The condition that the result is called with counts only for `rescale`, as what the plain denoiser gives.
    """

    def with_guidance(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        told = [c for _, c in terms] + ([condition] if rescale else [])
        rows = {key: torch.cat([c[key] for c in told] + [_nothing(null, key, told[0][key])]) for key in told[0]}
        copies = len(told) + 1
        rows |= {key: torch.cat([condition[key]] * copies) for key in (PLACES, GUESS) if key in condition}
        *answers, unconditional = denoise(torch.cat([x] * copies), torch.cat([t] * copies), rows).split(x.shape[0])
        x0 = unconditional
        for (scale, _), answer in zip(terms, answers, strict=False):
            x0 = x0 + scale * (answer - unconditional)
        return _rescaled(x0, answers[-1], rescale, condition.get(PLACES))

    return with_guidance


def only(condition: Conditions, names: Collection[str], null: Conditions) -> Conditions:
    """The condition with nothing told but `names`. What belongs to a name bears it, and a slash (`caption/pooled`)."""
    return {
        key: value if key.partition("/")[0] in names else _nothing(null, key, value) for key, value in condition.items()
    }


def _nothing(null: Conditions, name: str, value: Tensor) -> Tensor:
    """The null's rows [n, ...] in place of `value`, which stays where the null names none."""
    return null[name].expand_as(value) if name in null else value


def autoguided(denoise: Denoiser, weak: Denoiser, scale: float, rescale: float = 0.0) -> Denoiser:
    """x0 = weak + scale * (strong - weak): away from what a weaker version of the network does worse (Karras et al.
    2024, "Guiding a Diffusion Model with a Bad Version of Itself"). Both are given the condition.
    """
    if scale == 1.0:
        return denoise

    def with_guidance(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        return _away(denoise(x, t, condition), weak(x, t, condition), scale, rescale, condition.get(PLACES))

    return with_guidance


def along(denoise: Denoiser, direction: Tensor) -> Denoiser:
    """x0 + direction, [C, *sides] or [n, C, *sides]: each step of a walk goes on towards what lies there, and those
    after it make an image of that (`within` says at which noise levels)."""

    def led(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        return denoise(x, t, condition) + direction

    return led


def within(inside: Denoiser, outside: Denoiser, path: Path, low: float, high: float) -> Denoiser:
    """`inside` at times whose noise level sigma / alpha is in (low, high], else `outside`; t is one time for all.

    Guidance in a limited interval (Kynkaanniemi et al. 2024): at much noise it takes variety away, at
    little noise it does nothing and costs an evaluation.
    """

    def limited(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        level = float(noise_level(path, t[0]))
        return (inside if low < level <= high else outside)(x, t, condition)

    return limited


def _away(strong: Tensor, weak: Tensor, scale: float, rescale: float, places: Tensor | None) -> Tensor:
    """weak + scale (strong - weak), rescaled."""
    return _rescaled(weak + scale * (strong - weak), strong, rescale, places)


def _rescaled(x0: Tensor, strong: Tensor, rescale: float, places: Tensor | None) -> Tensor:
    """x0 with its deviation brought back to that of `strong` for the share `rescale`. places: bool [n, *sides], those
    whose deviation it is; none: all.

    Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", section 3.4, here for x0:
    the deviation over all elements of a sample grows with the scale, which is what makes images too bright.
    """
    if rescale == 0.0:
        return x0
    factor = _deviation(strong, places) / _deviation(x0, places)
    return rescale * (x0 * factor) + (1.0 - rescale) * x0


def _deviation(x: Tensor, places: Tensor | None) -> Tensor:
    """Of each sample of x [n, C, *sides], where its places are: [n, 1, ...]."""
    dims = tuple(range(1, x.dim()))
    if places is None:
        return x.std(dim=dims, keepdim=True)
    there = places[:, None].expand_as(x)
    count = there.sum(dim=dims, keepdim=True)
    apart = torch.where(there, x - torch.where(there, x, 0.0).sum(dim=dims, keepdim=True) / count, 0.0)
    return (apart.square().sum(dim=dims, keepdim=True) / (count - 1)).sqrt()
