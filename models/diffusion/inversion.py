"""Inversion: from data to the noise that a deterministic sampler makes them of. And SDEdit's start from an image.

The probability flow (samplers.py) has one solution through every point, so it is walked from data to noise as well as
back. Arguments are those of the sampler that is to lead back, `times` too: falling, times[0] at most 1, times[-1]
usually 0. The walk begins at times[-1] and ends at times[0]. What the denoiser is told, or guided by, must be the same
both ways.

At t = 0 there is no noise: x says nothing of eps there, since D(x, 0) = x. So the first step asks the denoiser at its
end t, about alpha x. With the level l = sigma / alpha, Tweedie's formula has D(alpha x, t) - x = l^2 score(x) for
small l, hence in z = x_t / alpha:

    the flow              dz/dl = eps = -l score, so z = x - l^2 / 2 score = x + (x - D(alpha x, t)) / 2
    a sampler's last step x = D(x_t, t),          so z = x - l^2 score     = x + (x - D(alpha x, t))

The two are not the same: DDIM's step to t = 0 takes off twice the noise that the flow does.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from models.conditioning import Conditions
from models.diffusion.denoiser import Denoiser
from models.diffusion.process import Path
from models.diffusion.samplers import Sampler


def inverse(sampler: Sampler, denoise: Denoiser, path: Path, x: Tensor, times: Tensor, condition: Conditions) -> Tensor:
    """A deterministic sampler walked backwards: x [n, ...] at times[-1] -> x at times[0], in as many evaluations.

    With `ddim` it is the usual DDIM inversion (Song, Meng and Ermon 2021, section 4.3; Dhariwal and Nichol 2021): each
    step takes eps of where it begins, while the sampler takes it of where this step ends. So flow and round trip have
    the sampler's order: 1 with `ddim` and `euler`, 2 with `heun` and `dpmpp_2m` (which wants alpha > 0 at times[0]).
    """
    rising = times.flip(0)
    if float(rising[0]) == 0.0:
        rising = rising[1:]
        t = rising[0]
        alpha = path.alpha(t)
        x0 = denoise(alpha * x, _rows(x, t), condition)
        x = alpha * (x + 0.5 * (x - x0))  # the flow's first step, second order in the level
    return sampler(denoise, path, x, rising, condition)


def exact_inverse(
    denoise: Denoiser,
    path: Path,
    x: Tensor,
    times: Tensor,
    condition: Conditions,
    tolerance: float = 1e-4,
    most: int = 32,
) -> Tensor:
    """The start that `samplers.ddim` leads to x over these times, but for what `tolerance` leaves.

    DDIM's step is x_s = F(y) = a y + b D(y, t) for y = x_t, with a = sigma_s / sigma_t, b = alpha_s - alpha_t a. It is
    solved for y by

        y <- y + h (x_s - F(y)),   h = 1 / (a + b alpha_t / (alpha_t^2 + sigma_t^2)) at first

    which is one over the derivative of the step for white data of variance 1, as normalised latents have in the mean.
    Pan et al. 2023 (AIDI) and Meiri et al. 2023 have h = 1 / a, ReNoise (Garibi et al. 2024) averages over such
    iterates. Near the data that converges only while a step less than doubles the noise level, and from t = 0 not at
    all, since a is 0 there. With the first h an iteration leaves at most 1 - l_s / l_t of an error along data of
    variance v <= 1, l the noise levels; from t = 0, sigma_t^2 (1 - v) / (alpha_t^2 v + sigma_t^2). Where a little noise
    more makes another image of it, F is steeper than that, and a constant h may not converge. So from the second
    iteration on, each image has its own, from its last move and what that changed (Barzilai and Borwein 1988):

        h = <dy, dF> / <dF, dF>

    F of a posterior mean is the gradient of a convex function, so that it has one solution; D under guidance is none.

    An image is done where x_s - F(y) is below `tolerance` of x_s (root mean squares). 50 steps take two to three
    evaluations each on trained models; no step takes more than `most`.
    """
    x0 = x
    for s, t in itertools.pairwise(times.flip(0)):
        alpha, sigma = path.alpha(t), path.sigma(t)
        a = path.sigma(s) / sigma
        b = path.alpha(s) - alpha * a
        first = a + b * alpha / (alpha.square() + sigma.square())
        y = (x - b * x0) / a if s > 0 else alpha * x  # with x0 as the last step had it
        h, move, left = torch.ones_like(x) / first, torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(most):
            x0 = denoise(y, _rows(x, t), condition)
            before, left = left, x - a * y - b * x0
            h = _secant(move, before - left, h)
            move = torch.where(_power(left) > tolerance**2 * _power(x), h * left, 0)
            if not move.any():
                break
            y = y + move
        x = y
    return x


def _power(x: Tensor) -> Tensor:
    """[n, ...] -> mean square of each, [n, 1, ...]."""
    return x.square().mean(tuple(range(1, x.ndim)), keepdim=True)


def _secant(move: Tensor, change: Tensor, h: Tensor) -> Tensor:
    """<dy, dF> / <dF, dF> of each image, for all its elements; h as it was where that is not positive."""
    found = (move * change).mean(tuple(range(1, move.ndim)), keepdim=True) / _power(change)
    return torch.where(found > 0, found, h)  # no move gives 0 or nan, which are not


def renoised(path: Path, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """SDEdit's start from an image (Meng et al. 2022): alpha x0 + sigma eps at one time t [] for all, from which a
    sampler goes on by a grid that begins at t. What has more detail than the noise hides is kept, the rest anew.
    """
    return path.alpha(t) * x0 + path.sigma(t) * eps  # t is float64, but of no dimension: x stays in the dtype of x0


def _rows(x: Tensor, t: Tensor) -> Tensor:
    """t as the denoiser takes it, [n]."""
    return x.new_full((x.shape[0],), float(t))
