"""With which weights a training begins: where `init_from` has them, what our network takes of them, adapters.

How two networks' weights are matched is in `models/transfer.py`, what an adapter is in `models/lora.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import read_json, sha256_file
from pipeline.networks import load_weights, read_weights
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    from torch import nn

    from models.transfer import Carried

INSIDE = {  # of an artifact, of a model's folder
    "autoencoder": ("ema.safetensors", "autoencoder.safetensors"),
    "diffusion": ("ema.safetensors", "denoiser.safetensors", "adapter_model.safetensors"),
}


def first_weights(config: Config, name: str) -> Path:
    """The weights that `init_from` names: a .safetensors file, an artifact's folder, or a model folder or URI."""
    from pipeline.generate.adapters import weights_file

    key, source, inside = f"`{name}.training.init_from`", str(getattr(config, name).training.init_from), INSIDE[name]
    file = weights_file(source, config.run.root, config.tracking.uri, inside)
    if file is None:
        raise UserError(f"{key}: {source} is neither a .safetensors file nor a folder with {' or '.join(inside)}")
    about = described(file) or {}
    if name == "diffusion" and config.diffusion.distil and "student" in about:
        raise UserError(f"{key}: {source} is a student itself, whose answers are no means; give its teacher")
    if "adapter" in about:
        raise UserError(f"{key}: {source} is an adapter; make a whole model of it (`ldm merge {source} -o FOLDER`)")
    return file


def training_recipe(config: Config, name: str) -> dict[str, Any]:
    """The keys of a training section that change the result; weights to begin with count by content, not by place."""
    kept = result_fields(getattr(config, name).training)
    if kept["init_from"]:
        kept["init_from"] = sha256_file(first_weights(config, name))
    return kept


def planned_weights(config: Config, name: str, recipe: Mapping[str, Any]) -> Path | None:
    """The weights that a stage of this recipe begins with; None where it begins with its own. UserError where others
    than those that were planned with lie there: the alias of a registered model may be moved at any time."""
    training = getattr(config, name).training
    if not training.init_from:
        return None
    file, wanted = first_weights(config, name), recipe["training"]["init_from"]
    if (found := sha256_file(file)) != wanted:
        raise UserError(
            f"`{name}.training.init_from`: {training.init_from} is of content {found[:12]} by now, and {wanted[:12]} "
            "when this run was planned: the alias, or the file, has changed since; run again"
        )
    return file


def put(
    network: nn.Module,
    what: dict[str, Any] | None,
    inputs: Mapping[str, Artifact],
    file: Path,
    config: Config,
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """Give a stage's network the weights in `file`, and adapters if it shall have some: then their adapter_config.json.

    what: the options of a denoiser, whose weights may be of one with other conditions; None: the weights fit or not.
    Says what was taken, what is new and what was left, a line each, and what makes the old weights strangers here.
    UserError, by name, for what does not fit.
    """
    if what is None:
        load_weights(network, file, inflated_weights(network, file) if getattr(network, "of_clips", False) else None)
        return None
    import torch

    from models import transfer
    from pipeline.data.order import seeded
    from pipeline.training import lora

    training = config.diffusion.training
    other = described(file)
    carried = _fitting(file, lambda: transfer.carry(network, read_weights(file), what, other))
    load_weights(network, file, carried.weights)
    for line in carried.lines():
        say(f"init_from, {line}")
    for line in strange(file, other or {}, what, inputs["autoencoder"]):
        say(f"warning: init_from, {line}")
    if training.lora is None:
        return None
    torch.manual_seed(seeded(config.run.seed, "diffusion/lora"))
    every = sum(p.numel() for p in network.parameters())
    adapter = lora.adapt(network, training.lora, carried.begun)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    say(f"lora: {trained:,} parameters are trained, {trained / every:.1%} of the network's {every:,}")
    return {**adapter, "base_model_name_or_path": f"sha256:{sha256_file(file)}"}


def inflated_weights(network: Any, file: Path) -> dict[str, Any]:
    """The weights in `file` for an autoencoder of clips, also of an autoencoder of images. UserError for others."""
    from models.autoencoders.clips import inflated

    weights = read_weights(file)
    if {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }:
        return weights
    try:
        return inflated(network, weights)
    except ValueError as error:
        raise UserError(f"`autoencoder.training.init_from`: {file} does not fit: {error}") from None


def strange(file: Path, other: Mapping[str, Any], what: Mapping[str, Any], autoencoder: Artifact) -> Iterator[str]:
    """What the weights in `file` were trained on and are not any more, a line each: they fit, and may be far off."""
    made_of = other.get("lineage") or {}
    if (file.parent / "manifest.json").is_file():
        made_of = read_json(file.parent / "manifest.json")["inputs"]
    theirs = (made_of.get("autoencoder") or {}).get("content") if isinstance(made_of, dict) else None
    if theirs and theirs != autoencoder.content:
        yield (
            f"trained on latents of another autoencoder (content {theirs[:12]}) than {autoencoder.name}; "
            "`autoencoder.from` gives it that one"
        )
    for key in ("path", "prediction"):
        if key in other and other[key] != what[key]:
            yield f"trained for `{key}` {_words(other[key])}, here it is {_words(what[key])}"


def _words(value: Any) -> str:
    return " ".join(str(part) for part in value.values()) if isinstance(value, dict) else str(value)


def check(config: Config, channels: int, sides: Sequence[int]) -> None:
    """UserError where the denoiser of `init_from` does not fit latents or backbone, before anything runs: by the shapes
    in the file of weights. What lies in a registry is looked at by the ranks."""
    from safetensors import SafetensorError, safe_open

    section = config.diffusion
    if not section.training.init_from or not Path(section.training.init_from).exists():
        return  # what is not there is told by the stage that needs it
    import torch
    from torch import nn

    from models import registry, transfer
    from models.diffusion.denoiser import beside
    from models.patches import size_of
    from pipeline.data.text_encoders import frozen_encoder

    file = first_weights(config, "diffusion")
    try:
        with safe_open(file, "pt") as header:
            shapes = {name: header.get_slice(name).get_shape() for name in header.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file ({error})") from None
    theirs = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    told = section.condition.model_dump(include={"caption", "spatial"})
    if encoder := frozen_encoder(config):  # of its kind there are many
        told["caption"]["encoder"] = encoder
    more = beside(section.backbone, told["spatial"], sides, channels if section.self_conditioning else 0)
    backbone = registry.outline("backbones", section.backbone, channels=channels, size=size_of(sides), **more)
    ours = {"latent": {"channels": channels}, "condition": told, "self_conditioning": section.self_conditioning}
    _fitting(file, lambda: transfer.carry(nn.ModuleDict({"backbone": backbone}), theirs, ours, described(file)))


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


def _fitting(file: Path, carry: Callable[[], Carried]) -> Carried:
    """What `carry` gives; its ValueError as a UserError."""
    try:
        return carry()
    except ValueError as error:
        raise UserError(f"`diffusion.training.init_from`: {file} does not fit: {error}") from None
