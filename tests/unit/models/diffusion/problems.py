"""Inverse problems on images of 2 x 2 whose posterior is known: data are a mixture of Gaussians, so given y = A x0 + s
noise they are one again. Shared by the tests of what solves them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion.gaussian import mixture_denoiser
from models.diffusion.operators import Linear, averaged, blurred, masked
from models.diffusion.process import EDM, SCHEDULES, RectifiedFlow, VariancePreserving
from models.diffusion.steps import Steps

PATHS = [RectifiedFlow(), *map(VariancePreserving, SCHEDULES), Steps(), EDM()]
SHAPE = (1, 2, 2)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _covariance(*rows: list[float]) -> Tensor:
    factor = torch.tensor(rows, dtype=torch.float64)
    return factor @ factor.T


@dataclass(frozen=True)
class Law:
    """A mixture of Gaussians: weights, means [4], covariances [4, 4]."""

    weights: list[float]
    means: list[Tensor]
    covariances: list[Tensor]

    def moments(self) -> tuple[Tensor, Tensor]:
        mean = sum(w * m for w, m in zip(self.weights, self.means, strict=True))
        parts = zip(self.weights, self.means, self.covariances, strict=True)
        return mean, sum(w * (c + torch.outer(m - mean, m - mean)) for w, m, c in parts)

    def denoiser(self, path):
        return mixture_denoiser(self.weights, self.means, self.covariances, path)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        k = torch.multinomial(torch.tensor(self.weights), n, True, generator=generator)
        factors = torch.stack([torch.linalg.cholesky(c) for c in self.covariances])
        noise = torch.randn(n, 4, 1, generator=generator, dtype=torch.float64)
        return (torch.stack(self.means)[k] + (factors[k] @ noise)[..., 0]).reshape(n, *SHAPE)


WHITE = Law([1.0], [vector(0.4, -0.6, 0.2, 0.1)], [torch.eye(4, dtype=torch.float64)])
GAUSSIAN = Law(
    [1.0],
    [vector(0.4, -0.6, 0.2, 0.1)],
    [_covariance([1.0, 0.0, 0.0, 0.0], [0.6, 0.7, 0.0, 0.0], [0.5, 0.2, 0.6, 0.0], [0.3, 0.5, 0.4, 0.4])],
)
MIXTURE = Law(
    [0.4, 0.6],
    [vector(0.9, 0.7, -0.5, 0.6), vector(-0.6, -0.5, 0.4, -0.7)],
    [
        _covariance([0.5, 0.0, 0.0, 0.0], [0.3, 0.4, 0.0, 0.0], [0.2, 0.1, 0.4, 0.0], [0.1, 0.2, 0.1, 0.3]),
        _covariance([0.4, 0.0, 0.0, 0.0], [-0.2, 0.5, 0.0, 0.0], [0.1, -0.1, 0.3, 0.0], [-0.2, 0.1, 0.1, 0.4]),
    ],
)
LAWS = {"gaussian": GAUSSIAN, "mixture": MIXTURE}

MASK = vector(1.0, 0.0, 0.0, 1.0).reshape(1, *SHAPE)
KERNEL = torch.tensor([[0.05, 0.1, 0.05], [0.1, 0.4, 0.1], [0.05, 0.1, 0.05]], dtype=torch.float64)
PROBLEMS = ("inpainting", "deblurring", "superresolution")
SPREADS = {"inpainting": 1.0, "deblurring": 1.0, "superresolution": 0.25}  # a, where A A^T = a I; of a blur, its norm
# between the two modes, so that both have about half the posterior
SEEN = {
    "inpainting": vector(0.1, 0.0, 0.0, 0.0),
    "deblurring": vector(0.1, 0.0, 0.0, -0.05),
    "superresolution": vector(0.1, 0.1, 0.1, 0.05),
}


def operator(problem: str, deviation: float) -> Linear:
    return {
        "inpainting": lambda: masked(MASK, deviation),
        "deblurring": lambda: blurred(KERNEL, deviation),
        "superresolution": lambda: averaged(2, deviation),
    }[problem]()


def measured(problem: str, a: Linear) -> Tensor:
    """y [1, 1, h, w]."""
    return a.forward(SEEN[problem].reshape(1, *SHAPE))


def matrix(a: Linear) -> Tensor:
    """A [m, 4], by its columns."""
    return a.forward(torch.eye(4, dtype=torch.float64).reshape(4, *SHAPE)).flatten(1).T


def posterior(law: Law, a: Linear, y: Tensor) -> Law:
    """The law of x0 given y, by the rule for jointly Gaussian vectors in each component, and Bayes' for the weights."""
    rows, seen = matrix(a), y.flatten()
    kept = rows.abs().sum(1) > 0  # where a mask is 0, y says nothing
    rows, seen = rows[kept], seen[kept]
    logs, means, covariances = [], [], []
    for w, m, c in zip(law.weights, law.means, law.covariances, strict=True):
        variance = rows @ c @ rows.T + a.deviation**2 * torch.eye(len(rows), dtype=torch.float64)
        gain = torch.linalg.solve(variance, rows @ c).T
        error = seen - rows @ m
        logs.append(
            math.log(w) - 0.5 * float(error @ torch.linalg.solve(variance, error)) - 0.5 * float(torch.logdet(variance))
        )
        means.append(m + gain @ error)
        covariances.append(c - gain @ rows @ c)
    return Law(torch.softmax(torch.tensor(logs, dtype=torch.float64), 0).tolist(), means, covariances)


def standard_errors(x: Tensor, law: Law, sets: int = 0) -> float:
    """How far the samples' mean and covariance are from the law's: the largest of all elements, in standard errors.

    These are measured between samples, or between the means of `sets` of them, where only sets are independent.
    """
    mean, covariance = law.moments()
    centred = x.flatten(1) - mean
    products = (centred[:, :, None] * centred[:, None, :] - covariance).flatten(1)
    found = torch.cat([centred, products], 1)
    if sets:
        found = found.reshape(sets, -1, found.shape[1]).mean(1)
    return float((found.mean(0) / found.std(0)).abs().max()) * math.sqrt(len(found))


def normal(n: int, seed: int):
    """Number of a draw -> the next noise [n, 1, 2, 2] of one generator."""
    generator = torch.Generator().manual_seed(seed)
    return lambda _: torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)


def uniform(n: int, seed: int):
    """Number of a draw -> the next [n] in [0, 1) of one generator."""
    generator = torch.Generator().manual_seed(seed)
    return lambda _: torch.rand(n, generator=generator, dtype=torch.float64)
