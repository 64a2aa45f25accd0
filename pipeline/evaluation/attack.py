"""How well a model knows single images: its denoiser's error on each of them at several noise levels.

An image that a denoiser was trained on often is denoised better than others (Carlini et al. 2023, section 5.2). Images
get the same noises, held-out ones as training images, so that what differs is the image. An error is compared with
others at its own level only, so scores are means of logarithms. How hard an image is for any model, a reference model
says (Watson et al. 2022, "On the Importance of Difficulty Calibration in Membership Inference Attacks").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.diffusion.denoiser import denoiser
from models.diffusion.process import add_noise, make_path
from pipeline.generate import told as words
from pipeline.generate.sampling import noise_of

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.generate.generator import Generator

Array = np.ndarray[Any, np.dtype[Any]]
LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # noise over data
NOISES = 2  # at each level
SMALLEST = 1e-12  # of an error, whose logarithm is taken

# x0 [n, C, h, w], noise the same, noise level, numbers of the images -> mean squared error of each, [n]
Loss = Callable[["Tensor", "Tensor", float, range], "Tensor"]


def errors(
    loss: Loss,
    latents: Tensor,
    seed: int,
    batch_size: int = 100,
    levels: Sequence[float] = LEVELS,
    noises: int = NOISES,
) -> Array:
    """Logarithms of the mean errors float64 [n, levels] of latents [n, C, h, w], over `noises` draws each: image i of
    any set has the noises of number i."""
    found = np.empty((len(latents), len(levels)))
    for begin in range(0, len(latents), batch_size):
        rows = range(begin, min(begin + batch_size, len(latents)))
        x0 = latents[rows.start : rows.stop]
        for place, level in enumerate(levels):
            total = np.zeros(len(rows))
            for number in range(noises):
                purpose = f"audit/{level:g}/{number}"
                noise = noise_of(seed, purpose, rows, tuple(x0.shape[1:]), x0.device)
                with torch.no_grad():
                    total += loss(x0, noise, level, rows).double().cpu().numpy()
            found[rows.start : rows.stop, place] = np.log(np.maximum(total / noises, SMALLEST))
    return found


def loss_of(model: Generator, told: Mapping[str, Any]) -> Loss:
    """The error of a model's answer, in normalised latents, where each image is told what belongs to it.

    told: as of a request, a value an image: classes (of which null is none), prompts, attributes, maps.
    """
    path = make_path(**model.options["path"])
    denoise = denoiser(model.network, path, model.options["prediction"])

    def loss(x0: Tensor, noise: Tensor, level: float, rows: range) -> Tensor:
        x0, noise = x0.to(model.device), noise.to(model.device)
        t = path.at(torch.full((len(rows),), level, dtype=torch.float64)).float().to(model.device)
        read = words.read(model.options, words.of_rows(told, rows), model.device, model.known)
        (condition, *_), _ = words.composed(model.options, told, rows, model.device, read)
        answer = denoise(add_noise(path, x0, noise, t), t, condition)
        return (answer - x0).square().flatten(1).mean(1)

    return loss


def scores(found: Array, reference: Array | None = None) -> Array:
    """Score float64 [n] of each image, higher where it looks trained on: minus the mean of its errors' logarithms
    [n, levels]; with a reference model's errors of the same images, that model's mean less this one's."""
    own: Array = found.mean(1)
    return -own if reference is None else reference.mean(1) - own
