"""What was measured of an image: y = A x0 + deviation * noise, the noise standard normal. For inverse.py.

x0 are what the denoiser is of, normalised latents as a rule. Operators here act on each channel by itself, on
[n, C, h, w]; one of pixels becomes one of latents with `through`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Operator:
    """Any A through which gradients flow: forward x0 [n, ...] -> [n, ...]; deviation of y's noise, at least 0."""

    forward: Map
    deviation: float


@dataclass(frozen=True)
class Linear(Operator):
    """A linear A, with its adjoint: sum(y * forward(x)) = sum(adjoint(y) * x). norm: A's largest singular value, or
    more."""

    adjoint: Map
    norm: float = 1.0


def masked(mask: Tensor, deviation: float) -> Linear:
    """Inpainting: A x = mask x, mask [n, 1, h, w] (or what broadcasts) of 1 where y is known, 0 elsewhere. What y has
    elsewhere must be 0."""
    return Linear(lambda x: mask * x, deviation, lambda y: mask * y)


def averaged(factor: int, deviation: float) -> Linear:
    """Superresolution: means over squares of factor x factor, [n, C, h, w] -> [n, C, h / factor, w / factor]. A A^T is
    1 / factor^2 times the identity."""

    def adjoint(y: Tensor) -> Tensor:
        return y.repeat_interleave(factor, -1).repeat_interleave(factor, -2) / factor**2

    return Linear(lambda x: F.avg_pool2d(x, factor), deviation, adjoint, 1.0 / factor)


def blurred(kernel: Tensor, deviation: float) -> Linear:
    """Deblurring: correlation of each channel with a kernel [k, k], k odd, zeros beyond the border.

    norm: the sum of the kernel's moduli, by Young's inequality.
    """

    def weight(x: Tensor) -> Tensor:
        return kernel.to(x).expand(x.shape[1], 1, *kernel.shape)

    pad = kernel.shape[-1] // 2
    return Linear(
        lambda x: F.conv2d(x, weight(x), padding=pad, groups=x.shape[1]),
        deviation,
        lambda y: F.conv_transpose2d(y, weight(y), padding=pad, groups=y.shape[1]),
        float(kernel.abs().sum()),
    )


def through(decode: Map, operator: Operator) -> Operator:
    """An operator of pixels as one of latents: A(decode(x0)), no longer linear."""
    return Operator(lambda x0: operator.forward(decode(x0)), operator.deviation)


def latent_mask(mask: Tensor, factor: int, margin: int = 0) -> Tensor:
    """Pixels that are known, [n, 1, H, W] of 1 and 0 -> latents that are, [n, 1, H / factor, W / factor].

    A latent is known if all pixels of its factor x factor patch are, and those of `margin` latents around it: encoder
    and decoder look beyond a patch, so a latent beside a hole holds some of what is in the hole.
    """
    if mask.shape[-1] % factor or mask.shape[-2] % factor:
        raise ValueError(f"mask: expected sides that {factor} divides, got {mask.shape[-2]} x {mask.shape[-1]}")
    unknown = F.max_pool2d(1.0 - mask.float(), factor)
    return 1.0 - F.max_pool2d(unknown, 2 * margin + 1, stride=1, padding=margin)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, [n, ...] -> [n, 1, ..., 1]."""
    return (a * b).sum(dim=tuple(range(1, a.dim())), keepdim=True)


def solve(matrix: Map, b: Tensor, steps: int) -> Tensor:
    """x with matrix(x) = b, a system a sample, by conjugate residuals from 0 (GCR, Eisenstat, Elman and Schultz 1983).

    For a symmetric positive matrix it is exact after as many steps as the matrix has different eigenvalues in b, as
    conjugate gradients are. For any other, what is left, b - matrix(x), never grows with a step; with conjugate
    gradients it may without bound, and the derivative of a trained network is neither symmetric nor positive.
    """
    x, r = torch.zeros_like(b), b
    before: list[tuple[Tensor, Tensor, Tensor]] = []  # directions p, matrix(p), and the square of that
    for _ in range(steps):
        p, q = r, matrix(r)
        for p_i, q_i, square in before:
            share = torch.where(square > 0, dot(q, q_i) / square, 0.0)
            p, q = p - share * p_i, q - share * q_i
        square = dot(q, q)
        step = torch.where(square > 0, dot(r, q) / square, 0.0)  # 0 / 0 where the system is solved
        x, r = x + step * p, r - step * q
        before.append((p, q, square))
    return x
