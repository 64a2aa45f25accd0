"""With which weights a training begins: where `init_from` has them, what our network takes of them, adapters.

How two networks' weights are matched is in `models/transfer.py`, what an adapter is in `models/lora.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import read_json, sha256_file
from pipeline.networks import load_weights, read_weights
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    from torch import nn

INSIDE = {  # of an artifact, of a model's folder
    "autoencoder": ("ema.safetensors", "autoencoder.safetensors"),
    "diffusion": ("ema.safetensors", "denoiser.safetensors"),
}


def first_weights(config: Config, name: str) -> Path:
    """The weights that `init_from` names: a .safetensors file, an artifact's folder, or a model folder or URI."""
    from pipeline.generate.adapters import weights_file

    key, source, inside = f"`{name}.training.init_from`", str(getattr(config, name).training.init_from), INSIDE[name]
    file = weights_file(source, config.run.root, config.tracking.uri, inside)
    if file is None:
        raise UserError(f"{key}: {source} is neither a .safetensors file nor a folder with {' or '.join(inside)}")
    return file


def training_recipe(config: Config, name: str) -> dict[str, Any]:
    """The keys of a training section that change the result; weights to begin with count by content, not by place."""
    kept = result_fields(getattr(config, name).training)
    if kept["init_from"]:
        kept["init_from"] = sha256_file(first_weights(config, name))
    return kept


def put(
    network: nn.Module, what: dict[str, Any] | None, file: Path, config: Config, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Give a stage's network the weights in `file`, and adapters if it shall have some: then their adapter_config.json.

    what: the options of a denoiser, whose weights may be of one with other conditions; None: the weights fit or not.
    Says what was taken, what is new and what was left, a line each. UserError, by name, for what does not fit.
    """
    if what is None:
        load_weights(network, file)
        return None
    import torch

    from models import transfer
    from pipeline.data.order import seeded
    from pipeline.training import lora

    training = config.diffusion.training
    try:
        carried = transfer.carry(network, read_weights(file), what, described(file))
    except ValueError as error:
        raise UserError(f"`diffusion.training.init_from`: {file} does not fit: {error}") from None
    load_weights(network, file, carried.weights)
    for line in carried.lines():
        say(f"init_from, {line}")
    if training.lora is None:
        return None
    torch.manual_seed(seeded(config.run.seed, "diffusion/lora"))
    every = sum(p.numel() for p in network.parameters())
    adapter = lora.adapt(network, training.lora, carried.begun)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    say(f"lora: {trained:,} parameters are trained, {trained / every:.1%} of the network's {every:,}")
    return {**adapter, "base_model_name_or_path": f"sha256:{sha256_file(file)}"}


def described(file: Path) -> dict[str, Any] | None:
    """The options of the network whose weights a file holds, from beside it; None where nothing is told there."""
    for path in (file.parent / "model.json", file.parent / "config.json"):
        if path.is_file():
            try:
                found = read_json(path)
            except json.JSONDecodeError:
                continue
            if isinstance(found, dict) and "backbone" in found:
                return found
    return None
