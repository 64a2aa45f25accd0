"""Where a condition acts on an image that is being denoised: the difference that it makes, place by place, and which
places look at which tokens of a caption.

The difference is one of answers and holds for any network. Attention says where a network takes a token in, not what it
makes of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.conditioning import Conditions
from models.diffusion.denoiser import Denoiser
from models.diffusion.guidance import only
from models.diffusion.objectives import scaled
from models.diffusion.process import Path


class Call(NamedTuple):
    """What a denoiser was asked and has answered: x and x0 [n, C, h, w], t [n]."""

    x: Tensor
    t: Tensor
    x0: Tensor


def recorded(denoise: Denoiser, calls: list[Call]) -> Denoiser:
    """The same denoiser, which appends each call to `calls`."""

    def answer(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        x0 = denoise(x, t, condition)
        calls.append(Call(x, t, x0))
        return x0

    return answer


class Effects(NamedTuple):
    """What conditions change in the answer, root mean squares over channels, in deviations of the latents, [n, h, w]:
    all of them together, and each by its name."""

    together: Tensor
    each: dict[str, Tensor]


def effects(
    denoise: Denoiser, x: Tensor, t: Tensor, condition: Conditions, null: Conditions, names: Collection[str]
) -> Effects:
    """|D(x; t, condition) - D(x; t, null)| over channels, and for each of the conditions `names`, where they are
    several, |D(x; t, condition) - D(x; t, condition without it)|.

    The first is what guidance multiplies (Ho and Salimans 2022, eq. 6). The others need not add up to it: two
    conditions may say the same, or act on each other. All answers come from batches of one shape, so that they are
    equal bit by bit where a condition changes nothing. null: a row for all, or one a sample.
    """
    told = denoise(x, t, condition)
    given = {key.partition("/")[0] for key in condition}

    def change(kept: Collection[str]) -> Tensor:
        left = {key: value.contiguous() for key, value in only(condition, kept, null).items()}
        return apart(told, denoise(x, t, left))

    return Effects(change(()), {name: change(given - {name}) for name in names} if len(names) > 1 else {})


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square over channels of the difference of two answers [n, C, h, w]: [n, h, w]."""
    return (a - b).square().mean(1).sqrt()


def looking(backbone: Any) -> bool:
    """Whether a backbone says how places look at a caption's tokens (`looks`)."""
    return bool(getattr(backbone, "attends", False)) and "looks" in inspect.signature(backbone.forward).parameters


def attention(network: nn.Module, path: Path, x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
    """How places look at the tokens of a caption, a mean over heads and blocks: float32 [n, S, h, w], over S 1 (with
    joint attention less: the rest goes to the image itself), 0 for padding.

    Tang et al. 2022, "What the DAAM: Interpreting Stable Diffusion Using Cross Attention", section 3: maps of all
    resolutions are brought to that of the latents. Theirs are sums over heads and blocks of scores that are not scaled;
    here it is the mean of probabilities. ValueError where the network attends to no tokens.
    """
    looks: list[Tensor] = []
    network(*scaled(x, t, path), condition, looks=looks)
    if not looks:
        raise ValueError("expected a network that attends to a caption's tokens")
    return torch.stack([functional.interpolate(each, x.shape[2:], mode="bilinear") for each in looks]).mean(0)
