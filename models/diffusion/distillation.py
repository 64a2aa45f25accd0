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
from torch import Tensor, nn

from models.conditioning import PLACES, Conditions
from models.diffusion import grids
from models.diffusion.denoiser import denoiser, start_time
from models.diffusion.guidance import guided
from models.diffusion.objectives import mean
from models.diffusion.process import Path
from models.diffusion.samplers import dpmpp_2m


def walk(
    teacher: nn.Module,
    guidance: float,
    steps: int,
    noise: Tensor,
    condition: Conditions,
    null: Conditions,
    path: Path,
    prediction: str,
) -> tuple[Tensor, Tensor]:
    """Where `steps` jumps of the teacher's walk begin and end: times float64 [steps + 1] and points float32 [steps + 1,
    n, C, *sides]. noise: standard normal [n, C, *sides]; guidance, null: as of `guidance.guided`."""
    times = grids.walk(steps, path, start_time(path, prediction))
    lead = guided(denoiser(teacher, path, prediction), guidance, null)
    seen: list[Tensor] = []

    def watched(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        seen.append(x)
        return lead(x, t, condition)

    with torch.no_grad():
        x = noise.float() * path.sigma(times[0]).float()
        end = dpmpp_2m(watched, path, x, times, condition)  # one evaluation a step
    each = len(seen) // steps
    return times[::each], torch.stack([*seen[::each], end])


def loss(
    student: nn.Module,
    teacher: nn.Module,
    guidance: float,
    steps: int,
    noise: Tensor,
    condition: Conditions,
    null: Conditions,
    path: Path,
    prediction: str,
) -> Tensor:
    """Squared distance of the student's answers at `steps` jumps to those that make the jumps, a mean over elements and
    jumps: float32 [n]. Arguments as of `walk`; all jumps are one batch of steps * n."""
    times, points = walk(teacher, guidance, steps, noise, condition, null, path, prediction)
    n = len(noise)
    shape = (-1, *[1] * noise.dim())
    alpha, sigma = (value.float().to(noise.device).view(shape) for value in (path.alpha(times), path.sigma(times)))
    before, after, r = points[:-1], points[1:], sigma[1:] / sigma[:-1]
    wanted = (after - r * before) / (alpha[1:] - r * alpha[:-1])  # [steps, n, C, *sides]
    told = {name: torch.cat([rows] * steps) for name, rows in condition.items()}
    t = times[:-1].float().to(noise.device).repeat_interleave(n)
    answer = denoiser(student, path, prediction)(before.flatten(0, 1), t, told)
    far: Tensor = mean((answer - wanted.flatten(0, 1)).square(), told.get(PLACES))
    return far.view(steps, n).mean(0)
