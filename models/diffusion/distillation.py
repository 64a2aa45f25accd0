"""A student of few evaluations: it learns the jumps that its teacher's walk makes in several steps each.

From the same noise the teacher walks its probability flow down to an image (Luhman and Luhman 2021, "Knowledge
Distillation in Iterative Generative Models"). The points at which the student's jumps begin and end lie on that walk
(as in progressive distillation, Salimans and Ho 2022, which halves the steps again and again; here it is one training).
A jump of DDIM from x_t to x_s has one x0 that makes it,

    x_s = alpha_s x0 + sigma_s (x_t - alpha_t x0) / sigma_t
    x0* = (x_s - r x_t) / (alpha_s - r alpha_t),  r = sigma_s / sigma_t,

and the loss is |f(x_t, t) - x0*|^2, a mean over the jumps. The student is a network of the teacher's form that begins
with its weights. No image is needed, only what images are told; and no derivative of the teacher. `ddim` over
`grids.jumps` samples with it (`few` of samplers.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.conditioning import PLACES, Conditions
from models.diffusion.denoiser import Denoiser
from models.diffusion.objectives import mean
from models.diffusion.process import Path
from models.diffusion.samplers import dpmpp_2m


@torch.no_grad()
def walk(teacher: Denoiser, times: Tensor, noise: Tensor, condition: Conditions, path: Path) -> Tensor:
    """Where the teacher's walk is at each of `times` (float64 [steps + 1], down to 0; `grids.walk`): float32
    [steps + 1, n, C, *sides], from standard normal noise [n, C, *sides]."""
    seen: list[Tensor] = []

    def watched(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:  # dpmpp_2m asks once a step
        seen.append(x)
        return teacher(x, t, condition)

    end = dpmpp_2m(watched, path, noise.float() * path.sigma(times[0]).float(), times, condition)
    return torch.stack([*seen, end])


def loss(
    student: Denoiser, jumps: int, teacher: Denoiser, times: Tensor, noise: Tensor, condition: Conditions, path: Path
) -> Tensor:
    """Squared distance of the student's answers at `jumps` equally long stretches of the teacher's `walk` to those that
    make the jumps, a mean over elements and jumps: float32 [n]. All jumps are one batch of jumps * n."""
    each, n = (len(times) - 1) // jumps, len(noise)
    points, times = walk(teacher, times, noise, condition, path)[::each], times[::each]
    shape = (-1, *[1] * noise.dim())
    alpha, sigma = (value.float().to(noise.device).view(shape) for value in (path.alpha(times), path.sigma(times)))
    before, after, r = points[:-1], points[1:], sigma[1:] / sigma[:-1]
    wanted = (after - r * before) / (alpha[1:] - r * alpha[:-1])  # [jumps, n, C, *sides]
    told = {name: torch.cat([rows] * jumps) for name, rows in condition.items()}
    t = times[:-1].float().to(noise.device).repeat_interleave(n)
    far: Tensor = mean((student(before.flatten(0, 1), t, told) - wanted.flatten(0, 1)).square(), told.get(PLACES))
    return far.view(jumps, n).mean(0)
