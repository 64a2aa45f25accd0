"""Adapters in a network in training: peft's layers put in, all else frozen but what is new. The only import of peft.

What an adapter is, and how it is summed up with its base, is in `models/lora.py`; where the base comes from, in
`pipeline/tasks/begin.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from models.lora import NAME, adapted
from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from pipeline.schema.training import Lora

BACKBONE = "backbone."  # adapters go in there only: what reads conditions is small, and trained whole where it is new


def adapt(network: nn.Module, lora: Lora, begun: Collection[str]) -> dict[str, Any]:
    """Put adapters beside the network's layers, in place; gives what peft writes as adapter_config.json.

    Their A is drawn from torch's global generator, B is zero: nothing has changed yet. Parameters named in `begun` are
    trained whole, all others frozen.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(f"`diffusion.training.lora` needs peft ({error}); pip install 'ldm-pipeline[lora]'") from None

    backbone: Any = network.backbone
    new = {name.removeprefix(BACKBONE) for name in begun}
    try:
        names = [f"{BACKBONE}{name}" for name in adapted(backbone, lora.targets, new)]
    except ValueError as error:
        raise UserError(f"`diffusion.training.lora.targets`: {error}") from None
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha or lora.rank, target_modules=names)
    inject_adapter_in_model(config, network, adapter_name=NAME)
    for name, parameter in network.named_parameters():
        if name in begun:
            parameter.requires_grad_(True)
    whole = sorted({name.rpartition(".")[0] for name in begun})
    said = config.to_dict() | {"inference_mode": True, "modules_to_save": whole or None}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in said.items()}
