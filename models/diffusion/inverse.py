"""Linear inverse problems, y = A x0 + s noise (operators.py): a denoiser in, one that knows y out.

By Bayes' rule the score of the posterior is that of the data plus grad log p(y | x). By Tweedie's formula a term g of
the score is sigma^2 / alpha g of x0, so all that is needed is a denoiser, for any sampler:

    E[x0 | x, y] = D(x, t) + sigma^2 / alpha grad_x log p(y | x),       p(y | x) = integral p(y | x0) p(x0 | x) dx0

The integral is not known, and the functions here differ in what they take for p(x0 | x), a Gaussian about D(x, t) of
covariance C:

    function                       C                               exact for
    likelihood_guided, spread 0    0 (DPS)                         nothing
    likelihood_guided, spread > 0  white (PiGDM)                   white data of variance 1
    pseudo_inverse                 white (DDNM), without gradient  white data of variance 1
    moment_matched                 that of p(x0 | x)               Gaussian data, any A

What is exact for other data are chains and particles, in inverse_samplers.py. Answers carry no gradient. Where alpha
is 0, x says nothing of x0 and these give 0 / 0, so a walk starts a little later, as if the network predicted eps:
`denoiser.start_time(path, "eps")`. A trained network's derivative is worst at much noise, where sigma^2 / alpha is
large: walks guided by its gradient are held together by `guidance.within(likelihood_guided(...), pseudo_inverse(...),
path, 0.0, 3.0)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.conditioning import Conditions
from models.diffusion import operators
from models.diffusion.denoiser import Denoiser
from models.diffusion.operators import Linear, Map, Operator, dot, solve
from models.diffusion.process import Path, like


def likelihood(
    denoise: Denoiser,
    path: Path,
    operator: Operator,
    y: Tensor,
    spread: float,
    x: Tensor,
    t: Tensor,
    condition: Conditions,
) -> tuple[Tensor, Tensor, Tensor]:
    """D(x, t), and log N(y; A D(x, t), s^2 + spread r^2) but for a constant, [n, 1, ..., 1], with its gradient in x.

    r^2 = sigma^2 / (alpha^2 + sigma^2) is the variance of x0 given x for white data of variance 1.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x0 = denoise(x, t, condition)
        error = y - operator.forward(x0)
        log = -0.5 * dot(error, error) / (operator.deviation**2 + spread * _white(path, x, t))
    (gradient,) = torch.autograd.grad(log, x, torch.ones_like(log))
    return x0.detach(), log.detach(), gradient


def likelihood_guided(denoise: Denoiser, path: Path, operator: Operator, y: Tensor, spread: float = 1.0) -> Denoiser:
    """x0 = D + sigma^2 / alpha grad_x log N(y; A D(x, t), s^2 + spread r^2), for an A of any kind, a decoder in it too.

    spread 0: DPS (Chung et al. 2023, equation 16, with the noise's own variance and not a step size tuned by hand). It
    takes the mean D for x0 itself, so y pulls far too hard at much noise. spread a: PiGDM (Song et al. 2023,
    equation 7) wherever A A^T = a I: 1 for a mask, 1 / factor^2 for means. An evaluation and its gradient.
    """

    def with_likelihood(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        x0, _, gradient = likelihood(denoise, path, operator, y, spread, x, t, condition)
        return x0 + _tweedie(path, x, t) * gradient

    return with_likelihood


def pseudo_inverse(denoise: Denoiser, path: Path, operator: Linear, y: Tensor, solves: int = 8) -> Denoiser:
    """x0 = D + r^2 A^T (r^2 A A^T + s^2)^-1 (y - A D), r^2 as in `likelihood`. One evaluation, no gradient.

    Without noise that is D + A^+ (y - A D): what y says of x0 is put in place of what D says (DDNM, Wang et al. 2023,
    equation 10; their DDNM+ scales it down by a rule of its own where there is noise). solves: steps of
    `operators.solve`, one is enough where A A^T = a I.
    """

    def with_likelihood(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        return corrected(operator, y, denoise(x, t, condition), _white(path, x, t), solves)

    return with_likelihood


def corrected(operator: Linear, y: Tensor, x0: Tensor, variance: Tensor | float, solves: int) -> Tensor:
    """x0 + r^2 A^T (r^2 A A^T + s^2)^-1 (y - A x0): the mean of what x0 is, N(x0, r^2) as far as is known, given y."""
    return x0 + _gain(operator, lambda v: variance * v, y - operator.forward(x0), solves)


def linearised(
    denoise: Denoiser, path: Path, operator: Operator, y: Tensor, spread: float = 1.0, solves: int = 3
) -> Denoiser:
    """`pseudo_inverse` for an A of any kind, a decoder in it too: A is taken for its derivative J at D, so that

        x0 = D + (J^T J + s^2 / (spread r^2))^-1 J^T (y - A(D))

    a step of Gauss and Newton towards the x0 that y and D make most likely. spread: above 1 where the data leave more
    open than r^2, as latents do, which are not white. No gradient of the network, and no size of a step to be chosen,
    as for DPS and PSLD. An evaluation of the network; 1 + solves of A and as many of its gradient.
    """

    def with_likelihood(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        x0 = denoise(x, t, condition).detach()
        seen, slope = operators.linearised(operator, x0)
        ridge = operator.deviation**2 / (spread * _white(path, x, t))
        pull = slope.adjoint(y - seen)
        return x0 + solve(lambda v: slope.adjoint(slope.forward(v)) + ridge * v, pull, solves)

    return with_likelihood


def moment_matched(denoise: Denoiser, path: Path, operator: Linear, y: Tensor, solves: int = 8) -> Denoiser:
    """x0 = D + C A^T (A C A^T + s^2)^-1 (y - A D), with the covariance of x0 given x, C = sigma^2 / alpha dD/dx (Boys
    et al. 2023, TMPD; with an iterative solver: Rozet et al. 2024).

    C follows from Tweedie's formula for the covariance. For Gaussian data p(x0 | x) is Gaussian with D and C, so this
    is the denoiser of the posterior. Of other data it leaves out that C depends on x, and that p(x0 | x) has another
    form. An evaluation and 1 + solves gradients. C is symmetric and positive for an ideal denoiser, of a trained one
    about so at little noise only; 3 solves are enough there.
    """

    def with_likelihood(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0 = denoise(x, t, condition)
        scale = _tweedie(path, x, t)

        def covariance(v: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(x0, x, v, retain_graph=True)
            return scale * product

        mean = x0.detach()
        return mean + _gain(operator, covariance, y - operator.forward(mean), solves)

    return with_likelihood


def _gain(operator: Linear, covariance: Map, error: Tensor, solves: int) -> Tensor:
    """C A^T (A C A^T + s^2)^-1 error: how far x0 moves, Kalman's gain."""

    def total(w: Tensor) -> Tensor:
        return operator.forward(covariance(operator.adjoint(w))) + operator.deviation**2 * w

    return covariance(operator.adjoint(solve(total, error, solves)))


def _white(path: Path, x: Tensor, t: Tensor) -> Tensor:
    """sigma^2 / (alpha^2 + sigma^2), like x."""
    sigma2 = path.sigma(t).square()
    return like(sigma2 / (path.alpha(t).square() + sigma2), x)


def _tweedie(path: Path, x: Tensor, t: Tensor) -> Tensor:
    """sigma^2 / alpha, like x: what a term of the score is worth in x0."""
    return like(path.sigma(t).square() / path.alpha(t), x)
