"""Fréchet distance of two sets of features, with what makes a figure comparable: count, extractor, interval, baseline.

The distance of the Gaussians fitted to two sets of features (Dowson and Landau, 1982; as FID: Heusel et al., 2017):

    d^2 = |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))

Estimated from n images it is too large by about c/n (Chong and Forsyth, 2020), so figures are compared at equal
counts only. Where features come from is in `features.py`; which sets are compared, in `stages/evaluate.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Features = np.ndarray[Any, np.dtype[np.float64]]  # [n, d]
MIN_IMAGES = 50  # below this a covariance says nothing
LEVEL = 0.95  # of the interval


@dataclass(frozen=True)
class Figure:
    """A Fréchet distance (squared, as FID is) and all that must be equal before it is compared with another.

    interval: 95%, by bootstrap. images: in each of the two sets. real: digest of the real images, both halves.
    rank_deficient: fewer images than features, so that the distance lives in the space the images span.
    """

    value: float
    interval: tuple[float, float]
    images: int
    features: int
    extractor: str
    real: str
    bootstrap: int
    rank_deficient: bool

    def json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Figure:
        """The inverse of `json`."""
        low, high = values["interval"]
        return cls(**{**values, "interval": (low, high)})


def distance(first: Features, second: Features) -> float:
    """Fréchet distance of two feature sets [n, d] and [m, d], by torchmetrics in float64.

    Raises ValueError for fewer than two images, differing widths, or features that are not finite.
    """
    import torch

    from pipeline.evaluation.metrics.library import torchmetrics

    _check(first, second)
    # Features are given instead of images: the metric's own extractor is the identity.
    metric = torchmetrics("image.fid").FrechetInceptionDistance(feature=_given(first.shape[1]))
    # A common shift changes no distance, and keeps its one-pass covariance clear of cancellation.
    shift = first.mean(0)
    metric.update(torch.from_numpy(np.asarray(first - shift, np.float64)), real=True)
    metric.update(torch.from_numpy(np.asarray(second - shift, np.float64)), real=False)
    return max(0.0, float(metric.compute()))


def fast_distance(first: Features, second: Features) -> float:
    """The same distance without eigenvalues of a d x d product: what the bootstrap calls hundreds of times.

    With S = A^T A for the centred features A / sqrt(n - 1), tr((S1 S2)^(1/2)) is the sum of the singular values of
    A1 A2^T, since the eigenvalues of S1 S2 are their squares. Where n > d, A is replaced by the R of its QR.
    """
    _check(first, second)
    roots: list[Features] = []
    for values in (first, second):
        centred: Features = (values - values.mean(0)) / np.sqrt(len(values) - 1)  # [n, d]
        roots.append(np.linalg.qr(centred).R if len(centred) > centred.shape[1] else centred)
    cross = float(np.linalg.svdvals(roots[0] @ roots[1].T).sum())
    mean_gap = float(np.square(first.mean(0) - second.mean(0)).sum())
    return max(0.0, mean_gap + sum(float(np.square(root).sum()) for root in roots) - 2 * cross)


def of_statistics(mean1: Features, cov1: Features, mean2: Features, cov2: Features) -> float:
    """The same distance of means [d] and covariances [d, d], which need not be of full rank.

    The eigenvalues of S1 S2 are those of R S2 R with R = S1^(1/2), which is symmetric: real, and not below zero but for
    rounding.
    """
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = float(np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(0)).sum())
    gap = float(np.square(mean1 - mean2).sum())
    return max(0.0, gap + float(np.trace(cov1)) + float(np.trace(cov2)) - 2 * cross)


def figure(first: Features, second: Features, **how: Any) -> Figure:
    """The distance of two sets of equal count, with its interval. ValueError with the reason if it says nothing. how:
    as of `measured`."""
    return measured(first, second, **how)[0]


def measured(
    first: Features,
    second: Features,
    *,
    extractor: str,
    real: str,
    resamples: int,
    seed: int,
) -> tuple[Figure, Features]:
    """`figure`, and the distances of its pairs of resamples, [resamples]: of a seed and a count the k-th pair takes the
    same rows, whatever the two sets hold, so that figures that share a set are resampled together (`gap`)."""
    if len(first) != len(second):
        raise ValueError(f"sets of {len(first)} and {len(second)} images: the distance depends on the count")
    if len(first) < MIN_IMAGES:
        raise ValueError(f"{len(first)} images a set are too few for a covariance; at least {MIN_IMAGES} are needed")
    value, n = distance(first, second), len(first)
    random = np.random.Generator(np.random.Philox(seed))
    values = np.empty(resamples)
    for k in range(resamples):
        rows = random.integers(n, size=(2, n))
        values[k] = fast_distance(first[rows[0]], second[rows[1]])
    low, high = _interval(values, value)
    found = Figure(
        value=value,
        interval=(max(0.0, low), high),
        images=n,
        features=first.shape[1],
        extractor=extractor,
        real=real,
        bootstrap=resamples,
        rank_deficient=n <= first.shape[1],
    )
    return found, values


def gap(shown: tuple[Figure, Features], baseline: tuple[Figure, Features]) -> dict[str, Any]:
    """What a distance is above its baseline's, both `measured` against one set: value and interval.

    The difference is taken resample by resample: what the common set does to both distances falls out. Two intervals of
    their own may overlap widely where this one is clear of 0.
    """
    value = shown[0].value - baseline[0].value
    return {"value": value, "interval": list(_interval(shown[1] - baseline[1], value))}


def _interval(values: Features, value: float) -> tuple[float, float]:
    """The spread of a figure over resamples, moved to the figure: a resample repeats images, which enlarges its
    distance as a smaller count would, so that plain percentiles would miss the figure itself."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - values.mean() + value
    return float(low), float(high)


def why_not_comparable(first: Figure, second: Figure) -> str | None:
    """The reason why two figures must not be put side by side, or None if they may."""
    from pipeline.past.comparable import why_not

    return why_not(first.json(), second.json())


def line(name: str, shown: Figure, baseline: Figure) -> str:
    """One line with a figure and all that belongs beside it. Raises ValueError where the baseline is not comparable."""
    reason = why_not_comparable(shown, baseline)
    if reason:
        raise ValueError(f"{name} and its baseline cannot be compared: {reason}")
    return (
        f"{name} {shown.value:.3g} [{shown.interval[0]:.3g}, {shown.interval[1]:.3g}], real data {baseline.value:.3g} "
        f"[{baseline.interval[0]:.3g}, {baseline.interval[1]:.3g}], {shown.images} images a set, "
        f"extractor {shown.extractor[:12]}"
    )


def _check(first: Features, second: Features) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"expected features [n, d] and [m, d], got {first.shape} and {second.shape}")
    if min(len(first), len(second)) < 2:
        raise ValueError("a covariance needs at least two images a set")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("features are not finite; look at the images and the extractor")


def _given(width: int) -> Any:
    """An extractor for torchmetrics that hands on what it is given."""
    from torch import nn

    module: Any = nn.Identity()
    module.num_features = width
    return module
