"""A DiT with its loss on random latents, and the bare PyTorch loop that benchmarks compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.diffusion import objectives
from models.diffusion.denoiser import Network, build_network
from models.diffusion.process import make_path
from pipeline.data.latents import LatentSpace

CLASSES = 10
LEARNING_RATE, CLIP, HALF_LIFE = 1e-4, 1.0, 50_000
Batch = dict[str, Any]
LossFn = Callable[[nn.Module, Batch], dict[str, Tensor]]


def network(backbone: dict[str, Any], channels: int, size: int) -> Network:
    """Class-conditional, the same weights each time."""
    torch.manual_seed(0)
    return build_network({"kind": "dit", **backbone}, "class", channels, size, CLASSES)


def loss_function(channels: int) -> LossFn:
    """The loss of the diffusion stage: rectified flow, uniform times."""
    path, space = make_path("rectified_flow", "linear"), LatentSpace(torch.zeros(channels), torch.ones(channels))
    times = objectives.Times()

    def loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x0 = space.draw(batch["moments"], batch["posterior"])
        condition = {"class": batch["label"]}
        values = objectives.loss(module, x0, batch["noise"], times(batch["u"], path), condition, path, "velocity")
        return {"loss": values.mean()}

    return loss


def random_batch(batch: int, channels: int, size: int) -> Batch:
    """What the loader gives, from a generator."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, size, size)
    return {
        "moments": torch.randn(batch, 2 * channels, size, size, generator=generator),
        "posterior": torch.randn(shape, generator=generator),
        "noise": torch.randn(shape, generator=generator),
        "u": torch.rand(batch, generator=generator, dtype=torch.float64).clamp(min=1e-9),
        "label": torch.randint(0, CLASSES, (batch,), generator=generator),
    }


def bare_step(model: nn.Module, loss: LossFn) -> Callable[[Batch], float]:
    """A step as one writes it by hand: backward, clip, AdamW (fused), average of the weights; gives the loss."""
    weights: list[Tensor] = list(model.parameters())
    adam = torch.optim.AdamW(weights, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    average = [w.detach().clone() for w in weights]

    def step(batch: Batch) -> float:
        value = loss(model, batch)["loss"]
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - 0.5 ** (len(batch["u"]) / HALF_LIFE))
        return float(value.detach())

    return step
