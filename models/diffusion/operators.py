"""What was measured of an image: y = A x0 + deviation * noise, the noise standard normal. For inverse.py.

x0 are what the denoiser is of, normalised latents as a rule. Operators here act on each channel by itself, on
[n, C, h, w]; one of pixels becomes one of latents with `through`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Map = Callable[[Tensor], Tensor]
YCC = (  # rows Y, Cb, Cr of red, green, blue: ITU-R BT.601 as JFIF has it
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)
STEP = 0.003  # of a difference quotient, in deviations of latents


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


def separable(rows: Tensor, columns: Tensor, deviation: float) -> Linear:
    """A x = rows x columns^T on each channel, [n, C, h, w] -> [n, C, h', w'] for rows [n, h', h] and columns [n, w', w]
    (or what broadcasts): blurs and reductions whose kernel is a product, with any border."""
    norm = math.prod(_bound(matrix) for matrix in (rows, columns))
    rows, columns = rows.unsqueeze(-3), columns.unsqueeze(-3)
    return Linear(
        lambda x: rows.to(x) @ x @ columns.mT.to(x), deviation, lambda y: rows.mT.to(y) @ y @ columns.to(y), norm
    )


def _bound(matrix: Tensor) -> float:
    """Not less than the largest singular value: |A|^2 <= |A|_1 |A|_inf."""
    return float((matrix.abs().sum(-1).amax(-1) * matrix.abs().sum(-2).amax(-1)).sqrt().max())


def bicubic(size: int, factor: int) -> Tensor:
    """The matrix [size / factor, size] of a bicubic reduction (Keys 1981, a = -0.5, stretched by the factor against
    aliasing), for `separable`: as Pillow has it, but for rounding."""
    return F.interpolate(
        torch.eye(size)[None, None], size=(size // factor, size), mode="bicubic", antialias=True, align_corners=False
    )[0, 0]


def gaussian(size: int, sigma: float) -> Tensor:
    """The matrix [size, size] of a Gaussian blur of `sigma` pixels, cut off at 4 sigma, for `separable`; beyond the
    border the image goes on as at it."""
    reach = max(1, round(4 * sigma))
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    at = (torch.arange(size)[:, None] + offsets).clamp(0, size - 1)
    return torch.zeros(size, size).scatter_add_(1, at, (kernel / kernel.sum()).expand(size, -1))


def gray(deviation: float) -> Linear:
    """Luma of red, green and blue (ITU-R BT.601, as Pillow's "L"), [n, 3, h, w] -> [n, 1, h, w]."""
    share = torch.tensor(YCC[0]).view(1, 3, 1, 1)
    return Linear(
        lambda x: (share.to(x) * x).sum(1, keepdim=True), deviation, lambda y: share.to(y) * y, float(share.norm())
    )


def jpeg(luma: Tensor, chroma: Tensor, shape: Sequence[int], share: float, deviation: float) -> Linear:
    """What a JPEG file says of images of a shape [1 or 3, h, w], whose sides 16 divides: cosine coefficients of blocks
    of 8 x 8, those of colour of half the sides, [n, 1 or 3, h, w] -> [n, m]. In units of their deviations: y's is 1.

    luma, chroma: tables [8, 8] of the steps q to which coefficients are rounded, in the images' units (ITU-T T.81).
    share: deviation of what rounding takes, of a step, taken for normal; 1 / sqrt(12) if it is uniform. deviation: of
    noise in pixels, besides.
    """
    k = torch.arange(8)
    basis = 0.5 * torch.cos(math.pi / 8 * k[:, None] * (k + 0.5))  # DCT-II
    basis[0] /= math.sqrt(2)  # now orthonormal
    scales = [torch.rsqrt((share * table).square() + deviation**2) for table in (luma, chroma)]

    def blocks(x: Tensor, scale: Tensor) -> Tensor:
        parts = x.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8))  # [n, c, h / 8, 8, w / 8, 8]
        return (torch.einsum("ui,ncaibj,vj->ncabuv", basis.to(x), parts, basis.to(x)) * scale.to(x)).flatten(1)

    def forward(x: Tensor) -> Tensor:
        if x.shape[1] == 1:
            return blocks(x, scales[0])
        ycc = torch.einsum("dc,nchw->ndhw", torch.tensor(YCC).to(x), x)
        return torch.cat([blocks(ycc[:, :1], scales[0]), blocks(F.avg_pool2d(ycc[:, 1:], 2), scales[1])], 1)

    def adjoint(y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = y.new_zeros((len(y), *shape)).requires_grad_()
            (found,) = torch.autograd.grad(forward(x), x, y)  # of a linear map, the same at every x
        return found

    largest = max(float(scale.max()) for scale in scales)
    return Linear(forward, 1.0, adjoint, largest * float(torch.linalg.matrix_norm(torch.tensor(YCC), 2)))


def linearised(operator: Operator, x0: Tensor) -> tuple[Tensor, Linear]:
    """A(x0), and A's derivative there. Its adjoint is exact, forward a difference quotient, which every network has and
    costs one evaluation: A(x0 + v) - A(x0) for v scaled to STEP, deviation by element. norm is not known: infinite."""
    with torch.enable_grad():
        x = x0.detach().requires_grad_()
        seen = operator.forward(x)

    def forward(v: Tensor) -> Tensor:
        scale = STEP / (dot(v, v) / v[0].numel()).sqrt().clamp(min=1e-12)
        with torch.no_grad():
            change = operator.forward(x0 + scale * v) - seen
        return change / scale.reshape(-1, *[1] * (change.dim() - 1))

    def adjoint(y: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(seen, x, y, retain_graph=True)
        return found

    return seen.detach(), Linear(forward, operator.deviation, adjoint, math.inf)


def through(decode: Map, operator: Operator) -> Operator:
    """An operator of pixels as one of latents: A(decode(x0)), no longer linear."""
    return Operator(lambda x0: operator.forward(decode(x0)), operator.deviation)


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """Pixels that are known, [n, 1, H, W] of 1 and 0 -> latents that are, [n, 1, H / factor, W / factor]: those whose
    patch of factor x factor pixels is all known. Encoder and decoder look beyond it, so that a latent beside a hole
    holds some of what is in the hole."""
    if mask.shape[-1] % factor or mask.shape[-2] % factor:
        raise ValueError(f"mask: expected sides that {factor} divides, got {mask.shape[-2]} x {mask.shape[-1]}")
    return 1.0 - F.max_pool2d(1.0 - mask.float(), factor)


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
