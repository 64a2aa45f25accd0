"""Adapters in a network in training: peft's layers put in, all else frozen but what is new. The only import of peft.

What an adapter is, and how it is summed up with its base, is in `models/lora.py`; where the base comes from, in
`pipeline/tasks/begin.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from models.lora import NAME
from models.registry import nearest
from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from pipeline.schema.training import Lora

BACKBONE = "backbone."  # what reads conditions is small, and trained whole where it is new


ATTENTION = ("attention.qkv", "attention.out", "cross.query", "cross.key_value", "cross.out",
             "to_q", "to_k", "to_v", "to_out.0")  # fmt: skip


def targets(network: nn.Module, wanted: Sequence[str] | None, begun: Collection[str] = ()) -> list[str]:
    """Names of the backbone's layers that adapters go beside: those whose name ends as one of `wanted` (default: of
    every attention) and that are not new (`begun`). UserError for one that no layer is called."""
    from torch import nn

    layers = [
        name
        for name, layer in network.named_modules()
        if name.startswith(BACKBONE) and isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    for end in wanted or ():
        if not any(_ends(name, end) for name in layers):
            known = sorted({re.sub(r"^.*\.\d+\.(?=\D)", "", name.removeprefix(BACKBONE)) for name in layers})
            raise UserError(
                f"`diffusion.training.lora.targets`: {nearest(end, known)}; no layer of the backbone ends as {end!r}"
            )
    found = [name for name in layers if any(_ends(name, end) for end in wanted or ATTENTION)]
    if not found:
        raise UserError("`diffusion.training.lora.targets`: this backbone has no attention; name its layers there")
    old = [name for name in found if f"{name}.weight" not in begun]
    if not old:
        raise UserError(
            "`diffusion.training.lora.targets`: the layers named are new, and trained whole; name others, or no `lora`"
        )
    return old


def _ends(name: str, end: str) -> bool:
    return name.endswith(f".{end}")


def adapt(network: nn.Module, lora: Lora, begun: Collection[str]) -> dict[str, Any]:
    """Put adapters beside the network's layers, in place; gives what peft writes as adapter_config.json.

    Their A is drawn from torch's global generator, B is zero: nothing has changed yet. Parameters named in `begun` are
    trained whole, all others frozen.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(f"`diffusion.training.lora` needs peft ({error}); pip install 'ldm-pipeline[lora]'") from None

    names = targets(network, lora.targets, begun)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha or lora.rank, target_modules=names)
    inject_adapter_in_model(config, network, adapter_name=NAME)
    for name, parameter in network.named_parameters():
        if name in begun:
            parameter.requires_grad_(True)
    whole = sorted({name.rpartition(".")[0] for name in begun})
    said = config.to_dict() | {"inference_mode": True, "modules_to_save": whole or None}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in said.items()}
