"""Closed forms: the ideal denoiser of Gaussian data and of mixtures, and the least loss that a Gaussian model of the
data can reach.

Samplers are tested against the first; the validation loss of a trained network is reported beside the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.conditioning import Conditions
from models.diffusion.denoiser import Denoiser
from models.diffusion.objectives import Times, check, weight
from models.diffusion.process import Path


def gaussian_denoiser(mean: Tensor, covariance: Tensor, path: Path) -> Denoiser:
    """E[x0 | x] for x0 ~ N(mean, covariance): mean [d], covariance [d, d]; takes x [n, ...] with d elements a sample.

    x0 = mean + alpha S (alpha^2 S + sigma^2 I)^-1 (x - alpha mean), the conditional expectation of jointly Gaussian
    vectors.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0.0)

    def denoise(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]  # [n, 1]
        gain = alpha * values / (alpha.square() * values + sigma.square())  # [n, d], in the eigenbasis
        centred = (x.flatten(1) - alpha * mean) @ vectors
        x0: Tensor = mean + (gain * centred) @ vectors.T
        return x0.reshape(x.shape)

    return denoise


def mixture_denoiser(
    weights: Sequence[float], means: Sequence[Tensor], covariances: Sequence[Tensor], path: Path
) -> Denoiser:
    """E[x0 | x] for a mixture of Gaussians: each component's answer, weighted by the component's posterior probability
    at x.
    """
    parts = [gaussian_denoiser(m, c, path) for m, c in zip(means, covariances, strict=True)]
    bases = [torch.linalg.eigh(c) for c in covariances]

    def denoise(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        flat = x.flatten(1)
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]  # [n, 1]
        scores = []
        for w, m, (values, vectors) in zip(weights, means, bases, strict=True):
            # x ~ N(alpha m, alpha^2 S + sigma^2 I) under this component, along S's eigenvectors
            variance = alpha.square() * values.clamp(min=0.0) + sigma.square()
            centred = (flat - alpha * m) @ vectors
            scores.append(math.log(w) - 0.5 * (centred.square() / variance + variance.log()).sum(1))
        posterior = torch.softmax(torch.stack(scores), dim=0)  # [components, n]
        answers = torch.stack([part(x, t, condition).flatten(1) for part in parts])  # [components, n, d]
        return (posterior[..., None] * answers).sum(dim=0).reshape(x.shape)

    return denoise


def gaussian_loss(
    eigenvalues: Tensor, path: Path, prediction: str, times: Times, weighting: str = "uniform", nodes: int = 8192
) -> float:
    """Expected loss (mean over elements, as `objectives.loss`) of the best denoiser of N(mean, S); S has `eigenvalues`.

    Along an eigenvector of variance l, x0 has the posterior variance l sigma^2 / (alpha^2 l + sigma^2), which is the
    squared error of x0; an error of x0 becomes one of eps, v or velocity as in `min_snr_weight`, hence k l / (alpha^2 l
    + sigma^2) with k = sigma^2, alpha^2, scale^2 (alpha^2 + sigma^2)^2, speed^2. The expectation over times is a
    midpoint rule over u. It is infinite for velocities whose squared speed has no mean (the linear schedule under
    uniform times). No denoiser that is affine in x does better: a network below it has learnt more of the data than
    its covariance.
    """
    check(prediction)
    values = eigenvalues.detach().to("cpu", torch.float64).flatten().clamp(min=0.0)
    t = times((torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes, path)
    alpha2, sigma2 = path.alpha(t).square(), path.sigma(t).square()
    if prediction == "velocity" and weighting == times.kind == "uniform" and torch.isinf(path.speed(t.new_zeros(1))):
        return math.inf  # speed^2 grows as 1 / t
    v2 = (path.scale(t) * (alpha2 + sigma2)).square()
    k = {"x0": sigma2, "eps": alpha2, "v": v2, "velocity": path.speed(t).square()}[prediction]
    k = k * weight(weighting, prediction, t, path)
    total = torch.zeros((), dtype=torch.float64)
    for value in values:  # a line of nodes at a time: little memory for any d
        total += (k * value / (alpha2 * value + sigma2)).mean()
    return float(total / len(values))
