"""Low-rank adapters of a network's products, as tensors: W + alpha / rank B A.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (https://arxiv.org/abs/2106.09685, section 4.1).
The layers that train them are peft's (`pipeline/training/lora.py`); here are the names and the sum, which need neither
peft nor a network. A file of an adapter holds A and B of each adapted layer, and whole parameters that were trained
with them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models.transfer import plain

PEFT = "base_model.model."  # before each name in a file of peft's
NAME = "default"  # of the one adapter that a network in training has, which its layers' names hold
LOW_RANK = re.compile(rf"(.+)\.lora_([AB])(?:\.{NAME})?\.weight")


def in_files_of_peft(name: str) -> str:
    """A parameter of a network in training, as peft names it in `adapter_model.safetensors`."""
    return PEFT + name.removeprefix(PEFT).replace(f".{NAME}.weight", ".weight")


def merged(
    base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float, names: set[str]
) -> dict[str, Tensor]:
    """The whole weights, float32, of a network that has the parameters `names`.

    base: of the network that was adapted; adapter: by names in training or in peft's files; scale: alpha / rank. Summed
    in float64, rounded once. KeyError with the name of what neither has.
    """
    theirs = {plain(name): value for name, value in base.items()}
    own = {name.removeprefix(PEFT): value for name, value in adapter.items()}
    factors: dict[str, dict[str, Tensor]] = {}
    for name, value in own.items():
        if match := LOW_RANK.fullmatch(name):
            factors.setdefault(f"{match[1]}.weight", {})[match[2]] = value
    out: dict[str, Tensor] = {}
    for name in sorted(names):
        whole = own[name] if name in own else theirs[plain(name)]
        if name in factors:
            whole = (whole.double() + scale * product(factors[name]["A"], factors[name]["B"], whole)).float()
        out[name] = whole
    return out


def product(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """B A in float64, in the shape of the weight: A [r, in], B [out, r] of a linear map; of a convolution A [r, in, k,
    k] and B [out, r, 1, 1]."""
    found = torch.einsum("or,ri->oi", b.double().flatten(1), a.double().flatten(1))
    return found.view_as(like)
