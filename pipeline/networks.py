"""Networks and their weights: built from plain options, loaded and saved as safetensors files.

What the networks are is in `models/`. torch is imported when one is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact
from pipeline.errors import UserError
from pipeline.files import read_json, save_tensors

if TYPE_CHECKING:
    from torch import nn

    from pipeline.config import Config


def build_network(options: Mapping[str, Any], activation_checkpointing: bool = False) -> nn.Module:
    """The denoising network that `options` describe, with fresh weights from torch's global generator."""
    from models.diffusion import denoiser

    return denoiser.build_network(
        options["backbone"],
        options["condition"]["kind"],
        options["latent"]["channels"],
        options["latent"]["size"],
        len(options["classes"]),
        activation_checkpointing,
        options["condition"].get("attributes"),
        options["condition"].get("caption"),
        options["condition"].get("spatial"),
        options.get("self_conditioning", False),
    )


def latent_side(config: Config) -> int:
    """Places a side of the latents of a square image, by the config's autoencoder; builds nothing. For maps over the
    latents, which have two sides then (`fits.check_models`)."""
    from models import registry
    from models.autoencoders import latent_sides

    options = config.autoencoder.model
    if config.autoencoder.from_:
        options = Artifact.load(config.autoencoder.from_, "autoencoder").recipe["model"]
    model: Any = registry.outline("autoencoders", options, channels=config.data.channels)
    return latent_sides(model, config.data.sides)[0]


def load_weights(module: nn.Module, path: Path, weights: Mapping[str, Any] | None = None) -> None:
    """Put a safetensors file, or `weights` that were made of it, into a module. Raises UserError if it is damaged or of
    another model."""
    try:
        module.load_state_dict(read_weights(path) if weights is None else weights)
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise UserError(f"{path}: weights of another model ({lines[min(1, len(lines) - 1)].strip()})") from None


def read_weights(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, on the CPU. Raises UserError if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; no whole model is there") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch the model again") from None


def load_model(folder: Path, which: str = "ema") -> nn.Module:
    """The trained autoencoder of an artifact, on the CPU, in evaluation mode."""
    from safetensors.torch import load_file

    from models import registry

    options = read_json(folder / "model.json")
    model: nn.Module = registry.build("autoencoders", options["model"], channels=options["channels"])
    model.load_state_dict(load_file(folder / f"{which}.safetensors"))
    return model.eval()


def save_weights(path: Path, weights: dict[str, Any]) -> None:
    """Whole weights as one safetensors file."""
    save_tensors(path, {key: value.contiguous().cpu() for key, value in weights.items()})
