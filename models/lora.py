"""Low-rank adapters of a network's products, as tensors: W + alpha / rank B A.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (https://arxiv.org/abs/2106.09685, section 4.1).
The layers that train them are peft's (`pipeline/training/lora.py`); here are the names and the sum, which need neither
peft nor a network. A file of an adapter holds A and B of each adapted layer, and whole parameters that were trained
with them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from models.registry import nearest
from models.transfer import plain

ATTENTION = ("qkv", "query", "key_value", "attention.out", "cross.out", "to_q", "to_k", "to_v", "to_out.0")

PEFT = "base_model.model."  # before each name in a file of peft's
NAME = "default"  # of the one adapter that a network in training has, which its layers' names hold
LOW_RANK = re.compile(rf"(.+)\.lora_([AB])(?:\.{NAME})?\.weight")


def adapted(backbone: nn.Module, wanted: Sequence[str] | None, begun: Collection[str] = ()) -> dict[str, nn.Module]:
    """The layers that adapters go beside, by name: linear maps and convolutions whose name ends as one of `wanted`
    (default: the products of every attention), but for those whose weight is new (`begun`) and trained whole.

    ValueError for one of `wanted` that no layer is called, and where nothing is left.
    """
    layers: dict[str, nn.Module] = {
        name: part for name, part in backbone.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)
    }
    for end in wanted or ():
        if not any(_ends(name, end) for name in layers):
            known = {re.sub(r"^.*\.\d+\.(?=\D)", "", name) for name in layers}  # blocks.3.mlp.up: mlp.up
            raise ValueError(f"no layer of the backbone is called {end!r}; {nearest(end, known)}")
    found = {name: part for name, part in layers.items() if any(_ends(name, end) for end in wanted or ATTENTION)}
    if not found:
        raise ValueError("this backbone has no attention that could be adapted; name some of its layers")
    old = {name: part for name, part in found.items() if f"{name}.weight" not in begun}
    if not old:
        raise ValueError("all layers that are named are new, and trained whole; name others, or leave out `lora`")
    return old


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def parameters(layers: Mapping[str, nn.Module], rank: int) -> int:
    """Parameters of the adapters of these layers: A [rank, in (k k)] and B [out, rank]."""
    shapes = [part.weight.shape for part in layers.values() if isinstance(part, nn.Linear | nn.Conv2d)]
    return sum(rank * (shape[0] + shape[1:].numel()) for shape in shapes)


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
