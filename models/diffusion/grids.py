"""Grids of times for samplers: where the steps of a walk from noise to data lie. Steps of the same count cost the same;
where they are dense, the walk is exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.diffusion.process import EDM, Path, noise_level

GRIDS = ("uniform", "cosine", "karras", "shifted", "few")
WALK = 10  # steps of a teacher, with dpmpp_2m, that a student of few steps learns from
KARRAS_RHO = 7.0
BASE_SIDE = 32  # latents of 256 pixels at a factor of 8, for which Esser et al. 2024 take no shift


def time_grid(steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """`steps` equal steps from `start` (see `denoiser.start_time`) down to `end`: float64 [steps + 1]."""
    if steps < 1 or not 0.0 <= end < start <= 1.0:
        raise ValueError(f"time grid: expected steps >= 1 and 0 <= end < start <= 1, got {steps}, {start}, {end}")
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def grid(kind: str, steps: int, path: Path, start: float = 1.0, shift: float = 1.0, noise_left: float = 0.0) -> Tensor:
    """Times float64 [steps + 1], falling from `start` (or the time of noise level 80, if earlier) to the noise
    level `noise_left`, 0 at its time 0: the same grid over what remains of the walk.

    "uniform": equal steps. "cosine": equal steps of an angle, t = start (1 - cos(pi u)) / 2, dense at both ends.
    "karras": `karras`. "shifted": `shifted`. "few": `jumps`. "auto": what suits the path, "karras" on EDM, else
    "uniform".
    """
    if kind == "auto":
        kind = "karras" if isinstance(path, EDM) else "uniform"
    end = float(path.at(torch.tensor(noise_left, dtype=torch.float64))) if noise_left else 0.0
    if end >= start:
        raise ValueError(f"noise_left: {noise_left:g} is all the noise that sampling begins with; give less")
    if kind == "uniform":
        return time_grid(steps, start, end)
    u = time_grid(steps)
    if kind == "cosine":
        times = 0.5 * (1.0 - torch.cos(math.pi * u))
    elif kind == "karras":
        return karras(steps, path, start, noise_left)
    elif kind == "few":
        if noise_left:
            raise ValueError("noise_left: the grid few ends without noise; give another grid, or 0")
        return jumps(steps, path, start)
    elif kind == "shifted":
        times = shifted(u, shift)
    else:
        raise ValueError(f"grid: expected one of auto, {', '.join(GRIDS)}, got {kind!r}")
    return (end + (start - end) * times).clamp(max=start)


def karras(steps: int, path: Path, start: float = 1.0, noise_left: float = 0.0) -> Tensor:
    """Noise levels with equal steps of their seventh root, from 80 (or what there is at `start`) to 0.002, then 0.

    level_i = (max^(1/7) + i / (steps - 1) (min^(1/7) - max^(1/7)))^7 for i < steps (Karras et al. 2022, equation 5).
    With `noise_left` above 0 that is the last of all `steps` + 1.
    """
    first = torch.tensor(start, dtype=torch.float64)
    high = float(noise_level(path, first).clamp(max=EDM.SIGMA_MAX))
    root = 1.0 / KARRAS_RHO
    if noise_left:
        levels = torch.linspace(high**root, noise_left**root, steps + 1, dtype=torch.float64) ** KARRAS_RHO
        return path.at(levels).clamp(max=start)
    levels = torch.linspace(high**root, EDM.SIGMA_MIN**root, steps, dtype=torch.float64) ** KARRAS_RHO
    return torch.cat([path.at(levels).clamp(max=start), levels.new_zeros(1)])


def walk(jumps: int, path: Path, start: float = 1.0) -> Tensor:
    """The teacher's walk of which a student makes `jumps` jumps, each of as many steps: float64 [steps + 1], ten steps
    or, where that is no multiple, the next one."""
    return grid("auto", jumps * math.ceil(WALK / jumps), path, start)


def jumps(steps: int, path: Path, start: float = 1.0) -> Tensor:
    """For the sampler `few`: where the jumps of a student begin and end on its teacher's `walk`."""
    times = walk(steps, path, start)
    return times[:: (len(times) - 1) // steps]


def shifted(t: Tensor, shift: float) -> Tensor:
    """t' = m t / (1 + (m - 1) t) for a shift m (Esser et al. 2024, equation 23). On the straight path it makes every
    noise level m times as large: more pixels need more noise to hide the same, with m the ratio of the sides.
    """
    if not shift > 0:
        raise ValueError(f"shift: expected more than 0, got {shift}")
    return shift * t / (1.0 + (shift - 1.0) * t)


def resolution_shift(side: float) -> float:
    """m = sqrt(side^2 / 32^2): the root of the ratio of elements, for latents of side x side (or of that area)."""
    return side / BASE_SIDE
