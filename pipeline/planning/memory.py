"""Bytes of tensors that a training step needs on a rank, before it runs: what stays by ZeRO stage, and a traced pass.

Of the networks and the first term of their loss: without discriminator, networks of a perceptual distance, teachers, at
the square shape. How tensors are counted is in `models/peak.py`; on which rank DeepSpeed keeps what, in
`pipeline/training/partition.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.planning.fits import check_models
from pipeline.schema.training import Training

if TYPE_CHECKING:
    from torch import Tensor, nn

FP32, MOMENTS = 4, 2  # bytes of an element; AdamW's moments
GATHERED = 1_000_000_000  # elements that ZeRO 3 does not give back before they are used again (DeepSpeed 0.19.8)
FROZEN_WIDTH = 768  # numbers a token of a text encoder that is not opened here


def of_rank(config: Config, name: str, world: int, device: str) -> tuple[float, float]:
    """Bytes on each of so many ranks in a stage's training: those that stay between steps, and the most in one.

    device: "cpu", or "cuda", which takes a torch that is built for it, and no GPU. Adapters (`lora`) are not counted.
    """
    from models import peak
    from pipeline.training.arithmetic import micro_batches
    from pipeline.training.initialise import BUCKET

    training: Training = getattr(config, name).training
    micro, passes = micro_batches(training, world)
    network, loss = {"autoencoder": _autoencoder, "diffusion": _diffusion}[name](config, micro)
    left = training.zero_stage < 3  # ZeRO 3 takes the gradient of a pass into its shares, which stay
    step = peak.of_step(network, loss, device, training.precision != "fp32", min(passes, 2) if left else 1)
    weights = FP32 * step.parameters
    bucket = min(FP32 * BUCKET, weights)
    copies = 1 + MOMENTS + len(training.half_lives) + len(training.average_lengths)  # fp32 weights among them
    if training.zero_stage == 0:  # every rank has everything; the bucket comes when activations are gone
        stays = float(copies * weights)
        return stays, stays + max(step.peak, weights + (bucket if world > 1 else 0))
    around = 2 * bucket if training.precision != "fp32" else bucket  # in half precision a second one comes back
    if training.zero_stage < 3:  # the weights that the network computes with, beside a share of the rest
        stays = weights + copies * weights / world
        return stays, stays + step.peak + around
    stays = (copies + 2) * weights / world  # shares of these weights and of the gradient as well
    gathered = min(weights, FP32 * GATHERED) if world > 1 else 0
    return stays, stays + gathered + step.peak + around


def _autoencoder(config: Config, count: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    import torch

    from models import registry
    from models.autoencoders import blank, latent_sides

    options, data = config.autoencoder.model, config.data
    model: Any = registry.outline("autoencoders", options, channels=data.channels)
    if config.autoencoder.training.activation_checkpointing:
        registry.checkpoint_activations(model, options["kind"])
    sides = latent_sides(model, data.sides)

    def loss() -> Tensor:
        x = blank(model, count, data.channels, data.sides)
        made, _ = model(x, torch.empty(count, model.latent_channels, *sides))
        if made.shape != x.shape:  # logits of tokens
            return made.float().log_softmax(-1).mean()  # type: ignore[no-any-return]
        distance: Tensor = (made.float() - x).square().mean()
        return distance

    return model, loss


def _diffusion(config: Config, count: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    import torch

    from models.diffusion import objectives
    from models.diffusion.denoiser import build_network
    from models.diffusion.process import make_path
    from models.patches import size_of
    from pipeline.schema.section import result_fields

    section = config.diffusion
    count *= section.distil.steps if section.distil else 1  # all jumps of a sample are one batch
    channels, sides = check_models(config)
    told = section.condition.model_dump()
    caption, recompute = told["caption"], section.training.activation_checkpointing
    read_before = caption is not None and caption["encoder"]["kind"] != "trained"
    if read_before:
        caption["encoder"] = {"kind": caption["encoder"]["kind"], "width": FROZEN_WIDTH}
    also = {"caption": caption, "spatial": told["spatial"], "self_conditioning": section.self_conditioning}
    with torch.device("meta"):
        network = build_network(section.backbone, told["kind"], channels, size_of(sides), 1, recompute, **also)
    path = make_path(**result_fields(section.path))

    def loss() -> Tensor:
        x0, t = torch.empty(count, channels, *sides), torch.empty(count)
        condition = network.null(count)
        if read_before:  # its null is one token
            condition["caption"] = torch.empty(count, caption["tokens"], FROZEN_WIDTH)
        return objectives.loss(network, x0, torch.empty_like(x0), t, condition, path, section.prediction).mean()

    return network, loss
