"""What a network predicts, how predictions turn into each other, and THE loss of the diffusion stage.

With x = alpha x0 + sigma eps, a prediction is p = a x0 + b eps:

    eps       (a, b) = (0, 1)                        Ho et al. 2020
    x0        (a, b) = (1, 0)
    v         (a, b) = scale * (-sigma, alpha)       Salimans and Ho 2022
    velocity  (a, b) = (alpha', sigma') = dx/dt      Liu et al. 2023, Lipman et al. 2023

`scale` is what the network's input is multiplied with (1 but on the EDM path): v is that of the scaled path. On the EDM
path alpha = 1 and scale = 1 / sqrt(sigma^2 + 1), so that -v = (sigma x0 - eps) / sqrt(sigma^2 + 1) and, solved for x0,

    x0 = x / (sigma^2 + 1) + sigma / sqrt(sigma^2 + 1) (-v)

These are c_skip, c_out and F of Karras et al. 2022, table 1, at sigma_data = 1: "v" on "edm" is their preconditioning.

Two equations, two unknowns: x0 = (b x - sigma p) / d, eps = (alpha p - a x) / d, d = alpha b - sigma a; `solve`
writes this out so that it is stable at t = 0 and t = 1. alpha and sigma are `process.py`'s; the call in training, with
the mean over a batch, is in `pipeline/tasks/diffusion.py`. No draws are made here: times come from u in (0, 1), noise
from the loader.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.conditioning import PLACES, Conditions
from models.diffusion.process import Path, add_noise, like

Network = Callable[[Tensor, Tensor, Conditions], Tensor]  # (x_t, clock, condition) -> prediction
PREDICTIONS = ("eps", "x0", "v", "velocity")
WEIGHTINGS = ("uniform", "min_snr", "edm")
TIMES = ("uniform", "logit_normal", "edm")
SMALLEST = 1e-4  # floor of a divisor: eps says nothing of x0 where alpha = 0, nor x0 of eps where sigma = 0


def check(prediction: str) -> None:
    """ValueError unless it is one of `PREDICTIONS`."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction: expected one of {', '.join(PREDICTIONS)}, got {prediction!r}")


def target(prediction: str, x0: Tensor, eps: Tensor, t: Tensor, path: Path) -> Tensor:
    """a x0 + b eps, what a perfect network would give; x0, eps [n, ...], t [n]."""
    check(prediction)
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    if prediction == "v":
        v = like(path.alpha(t), x0) * eps - like(path.sigma(t), x0) * x0
        return like(path.scale(t), x0) * v
    a, b = path.direction(t)
    return like(path.speed(t), x0) * (like(a, x0) * x0 + like(b, x0) * eps)


def solve(prediction: str, p: Tensor, x: Tensor, t: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    """Prediction p at (x, t) -> (x0, eps); p, x [n, ...], t [n].

    alpha x0 + sigma eps = x holds for the pair (within `SMALLEST` at the two ends that are not solvable).
    """
    check(prediction)
    alpha, sigma = like(path.alpha(t), x), like(path.sigma(t), x)
    if prediction == "eps":
        return (x - sigma * p) / alpha.clamp(min=SMALLEST), p
    if prediction == "x0":
        return p, (x - alpha * p) / sigma.clamp(min=SMALLEST)
    if prediction == "v":
        d = alpha.square() + sigma.square()  # alpha alpha - sigma (-sigma); 1 where variance is preserved
        p = p / like(path.scale(t), x)
        return (alpha * x - sigma * p) / d, (sigma * x + alpha * p) / d
    a, b = (like(c, x) for c in path.direction(t))  # p / speed = a x0 + b eps, and alpha b - sigma a = 1
    p = p / like(path.speed(t), x)
    return b * x - sigma * p, alpha * p - a * x


def convert(source: str, to: str, p: Tensor, x: Tensor, t: Tensor, path: Path) -> Tensor:
    """Any prediction into any other, at the same (x, t)."""
    x0, eps = solve(source, p, x, t, path)
    return target(to, x0, eps, t, path)


def min_snr_weight(prediction: str, t: Tensor, path: Path, gamma: float = 5.0) -> Tensor:
    """Weight [n] that makes the loss of any prediction equal min(SNR, gamma) times the squared error of x0.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy". An error e of x0 at a given x is an
    error -alpha/sigma e of eps, -scale (alpha^2 + sigma^2)/sigma e of v, -speed/sigma e of the velocity; with
    m = sigma^2 min(SNR, gamma) = min(alpha^2, gamma sigma^2) nothing is divided by zero.
    """
    check(prediction)
    alpha2, sigma2 = path.alpha(t).square(), path.sigma(t).square()
    m = torch.minimum(alpha2, gamma * sigma2)
    if prediction == "x0":
        return torch.where(alpha2 < gamma * sigma2, alpha2 / sigma2, torch.full_like(t, gamma))
    if prediction == "eps":
        return torch.where(alpha2 < gamma * sigma2, torch.ones_like(t), gamma * sigma2 / alpha2)
    if prediction == "v":
        return m / (path.scale(t) * (alpha2 + sigma2)).square()
    return m / path.speed(t).square()


def edm_weight(prediction: str, t: Tensor, path: Path) -> Tensor:
    """Weight [n] that makes the loss of any prediction equal (1 + SNR) times the squared error of x0.

    Karras et al. 2022, table 1: lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 at sigma_data = 1, with the
    noise level for sigma, is 1 + SNR = (alpha^2 + sigma^2) / sigma^2. By the errors of `min_snr_weight` it is 1 for v
    on the EDM path (c_out^2 lambda = 1 there) and where variance is preserved.
    """
    check(prediction)
    alpha2, sigma2 = path.alpha(t).square(), path.sigma(t).square()
    total = alpha2 + sigma2
    if prediction == "x0":
        return total / sigma2.clamp(min=SMALLEST**2)
    if prediction == "eps":
        return total / alpha2.clamp(min=SMALLEST**2)
    if prediction == "v":
        return 1.0 / (path.scale(t).square() * total)
    return total / path.speed(t).square()


@dataclass(frozen=True)
class Times:
    """The distribution of training times, as a map from uniform draws.

    "uniform": t = u. "logit_normal": t = sigmoid(mean + std z), z the normal quantile of u (Esser et al. 2024, section
    3.1). "edm": the time at which the log of the noise level sigma / alpha is mean + std z (Karras et al. 2022, table
    1: -1.2 + 1.2 z for sigma_data = 0.5, which is -0.5 + 1.2 z at 1). On the straight path the last two agree.
    """

    kind: str = "uniform"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in TIMES:
            raise ValueError(f"times.kind: expected one of {', '.join(TIMES)}, got {self.kind!r}")
        if self.std <= 0:
            raise ValueError(f"times.std: expected more than 0, got {self.std}")

    def __call__(self, u: Tensor, path: Path) -> Tensor:
        """u float64 [n] in (0, 1) -> t float64 [n] in (0, 1), or 1 where "edm" asks for more noise than there is."""
        if self.kind == "uniform":
            return u
        logit = self.mean + self.std * torch.special.ndtri(u)
        return path.at(torch.exp(logit)) if self.kind == "edm" else torch.sigmoid(logit)


def weight(weighting: str, prediction: str, t: Tensor, path: Path) -> Tensor:
    """Weight of a sample's loss, [n]: 1 for "uniform", `min_snr_weight` for "min_snr", `edm_weight` for "edm"."""
    if weighting == "uniform":
        return torch.ones_like(t)
    if weighting == "min_snr":
        return min_snr_weight(prediction, t, path)
    if weighting == "edm":
        return edm_weight(prediction, t, path)
    raise ValueError(f"weighting: expected one of {', '.join(WEIGHTINGS)}, got {weighting!r}")


def predict(network: Network, x: Tensor, t: Tensor, condition: Conditions, path: Path) -> Tensor:
    """The network's prediction at (x, t), float32: it is given scale * x and the path's clock."""
    return network(*scaled(x, t, path), condition).float()


def scaled(x: Tensor, t: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    """What a network is given for x_t and t: scale * x, and the path's clock."""
    return like(path.scale(t), x) * x, path.clock(t)


def mean(values: Tensor, places: Tensor | None) -> Tensor:
    """Mean of values [n, C, *sides] over the elements of each sample, [n]; places: bool [n, *sides] of those that
    count, none: all. What is elsewhere is not looked at."""
    if places is None:
        return values.flatten(1).mean(dim=1)
    counted = places[:, None].expand_as(values).flatten(1)
    return torch.where(counted, values.flatten(1), 0.0).sum(dim=1) / counted.sum(dim=1)


def loss(
    network: Network,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Conditions,
    path: Path,
    prediction: str,
    weighting: str = "uniform",
    cosine: float = 0.0,
    contrastive: float = 0.0,
) -> Tensor:
    """Weighted mean squared error of the prediction, float32 [n], a mean over the elements of each sample, where its
    latents are (`PLACES`).

    x0 normalised latents [n, C, *sides]; noise the same shape, ~ N(0, I); t [n] in (0, 1). x_t and the loss are
    float32. cosine, contrastive: weights of two terms beside it.
    """
    places = condition.get(PLACES)
    x0, noise, t = x0.float(), noise.float(), t.float()
    p = predict(network, add_noise(path, x0, noise, t), t, condition, path)
    y = target(prediction, x0, noise, t, path)
    each = mean((p - y).square(), places)  # [n]
    if contrastive:
        # Stoica et al. 2025, "Contrastive Flow Matching": minus |p - y'|^2, y' the target of another sample at random.
        # Over all of these its mean is |p|^2 and what does not depend on p, since targets have mean 0 as latents and
        # noise have: so no sample's loss depends on which others are on its rank.
        each = each - contrastive * mean(p.square(), places)
    if cosine:
        # Yao et al. 2024, "FasterDiT": 1 - cosine of the angle between p and y over channels, a mean over places
        apart = 1 - functional.cosine_similarity(p, y, dim=1)  # [n, *sides]
        each = each + cosine * mean(apart[:, None], places)
    per_sample: Tensor = weight(weighting, prediction, t, path) * each
    return per_sample
