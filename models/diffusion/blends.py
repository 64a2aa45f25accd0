"""Two tensors made one: between two noises, and one's layout with another's statistics. For `ldm compose`."""

from __future__ import annotations

import torch
from torch import Tensor


def slerp(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Along the sphere from x [1, ...] at w = 0 to y [1, ...] at w = 1, at each of w [n]: [n, ...].

        sin((1 - w) a) / sin(a) x + sin(w a) / sin(a) y,        cos(a) = <x, y> / (|x| |y|)

    (Shoemake 1985; for noises of images Song, Meng and Ermon 2021, appendix D.5.) Standard normal noise of many
    dimensions lies near a sphere and so does this, while half of x plus half of y is sqrt(2) times too near to 0. A
    straight line where x and y have one direction.
    """
    cosine = (x * y).sum() / (x.norm() * y.norm())
    angle = torch.arccos(cosine.clamp(-1.0, 1.0))
    w = w.to(x).reshape(-1, *[1] * (x.dim() - 1))
    if float(angle.sin()) < 1e-4:
        return (1 - w) * x + w * y
    return (torch.sin((1 - w) * angle) * x + torch.sin(w * angle) * y) / angle.sin()


def adain(x: Tensor, y: Tensor) -> Tensor:
    """x [n, C, *sides] with y's mean and deviation of each channel (AdaIN, Huang and Belongie 2017, equation 8):

    deviation(y) (x - mean(x)) / deviation(x) + mean(y)
    """
    sides = tuple(range(2, x.dim()))
    own, other = (one.std(sides, keepdim=True, correction=0) for one in (x, y))
    return other * (x - x.mean(sides, keepdim=True)) / own.clamp(min=1e-6) + y.mean(sides, keepdim=True)
