"""Consistency: a student that jumps from any noise level to where the teacher's probability flow ends.

Song et al. 2023, "Consistency Models": with f(x, t) the student's x0, along one walk of the flow f is the same, and
f(x, 0) = x. A step of the teacher takes x_t to x_r, a little less noise, and

    loss = w |f(x_t, t) - stop f(x_r, r)|

The student is a network of the teacher's form that begins with its weights: for all predictions but x0 the denoiser is
x itself where there is no noise. How far apart the two are, and w, are of Geng et al. 2024, "Consistency Models Made
Easy" (ECT): the gap is halved in equal parts of the training. No derivative along the flow is taken (as MeanFlow's), so
nothing is asked of the network that training does not ask. `few` of samplers.py samples with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.conditioning import PLACES, Conditions
from models.diffusion.denoiser import denoiser
from models.diffusion.objectives import check, mean
from models.diffusion.process import Path, add_noise, like, noise_level

HALVINGS = 8  # of the gap: 1/2 in the first eighth of the training, 1/256 in the last
SHARPNESS = 8.0  # k of ECT: the gap is up to 1 + k / 2 times as large where there is little noise
SCALE = 0.03  # c of the pseudo-Huber distance, in deviations of the latents


def check_prediction(prediction: str) -> None:
    """ValueError for a prediction whose denoiser is not x where there is no noise."""
    check(prediction)
    if prediction == "x0":
        raise ValueError("prediction: x0 is free where there is no noise, and a student has to give x there; give "
                         "another teacher (v, velocity, eps)")  # fmt: skip


def earlier(t: Tensor, path: Path, progress: float) -> Tensor:
    """The time r < t [n] of the pair, at a share `progress` in [0, 1] of the training.

    level_r = level_t (1 - gap), gap = n(level) / 2^(1 + stage), n = 1 + k sigmoid(-level), at most 1 (then r = 0).
    """
    stage = min(int(progress * HALVINGS), HALVINGS - 1)
    level = noise_level(path, t)
    # ECT's level is that of data of deviation 0.5
    gap = (1.0 + SHARPNESS * torch.sigmoid(-level / 2.0)) / 2.0 ** (stage + 1)
    return torch.where(gap >= 1.0, torch.zeros_like(t), path.at(level * (1.0 - gap.clamp(max=1.0))))


def step(x0: Tensor, x: Tensor, t: Tensor, r: Tensor, path: Path) -> Tensor:
    """x_r = alpha_r x0 + sigma_r eps with eps = (x - alpha_t x0) / sigma_t: the flow from t to r where x0 stands still
    (DDIM)."""
    eps = (x - like(path.alpha(t), x) * x0) / like(path.sigma(t), x)
    return like(path.alpha(r), x) * x0 + like(path.sigma(r), x) * eps


def loss(
    student: nn.Module,
    teacher: nn.Module,
    guidance: float,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Conditions,
    null: Conditions,
    path: Path,
    prediction: str,
    progress: float,
) -> Tensor:
    """Pseudo-Huber distance of both ends of a step, over the gap of their noise levels: float32 [n].

    x0 normalised latents [n, C, *sides], noise like it, t [n] in (0, 1). teacher: frozen; its answers are guided by
    `guidance` (`guidance.guided`; null: one row), which is then in the student's own. progress: share of the training.
    """
    from models.diffusion.guidance import guided

    x0, noise, t = x0.float(), noise.float(), t.float()
    x = add_noise(path, x0, noise, t)
    r = earlier(t, path, progress)
    f = denoiser(student, path, prediction)
    with torch.no_grad():
        ended = guided(denoiser(teacher, path, prediction), guidance, null)(x, t, condition)
        before = step(ended, x, t, r, path)
        wanted = torch.where(like(r, x) > 0, f(before, r.clamp(min=1e-6), condition), ended)
    far = mean((f(x, t, condition) - wanted).square(), condition.get(PLACES))  # [n], a mean over elements
    gap = noise_level(path, t) - torch.where(r > 0, noise_level(path, r), torch.zeros_like(r))
    distance: Tensor = ((far + SCALE**2).sqrt() - SCALE) / gap
    return distance
