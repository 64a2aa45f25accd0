"""Kernel distance of two sets of features (KID: Bińkowski et al., 2018): a squared maximum mean discrepancy, unbiased.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),   k(a, b) = (a.b / d + 1)^3

Unlike the Fréchet distance its mean does not depend on the count, so that few images say something: it is noisy, not
shifted. Where features come from is in `features.py`; which sets are compared, in `stages/evaluate.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Features = np.ndarray[Any, np.dtype[np.float64]]  # [n, d]
CHUNK = 1024  # rows of the kernel matrix at once
Z = 1.959963984540054  # the normal distribution's 97.5% point
MIN_IMAGES = 3  # below this the interval has no meaning


@dataclass(frozen=True)
class Figure:
    """A squared kernel distance (0 for equal distributions, below by chance) with its 95% interval, by jackknife.

    images: in each of the two sets. extractor, real: digests of what made the features, and of the real images.
    """

    value: float
    interval: tuple[float, float]
    images: int
    extractor: str
    real: str

    def json(self) -> dict[str, Any]:
        return asdict(self)


def distance(first: Features, second: Features) -> float:
    """The unbiased estimate (Gretton et al., 2012, eq. 3) from features [n, d] and [m, d]; n and m at least 2."""
    _check(first, second, 2)
    n, m = len(first), len(second)
    within_first = (_row_sums(first, first).sum() - _diagonal(first, first).sum()) / (n * (n - 1))
    within_second = (_row_sums(second, second).sum() - _diagonal(second, second).sum()) / (m * (m - 1))
    return float(within_first + within_second - 2 * _row_sums(first, second).sum() / (n * m))


def figure(first: Features, second: Features, *, extractor: str, real: str) -> Figure:
    """The distance of two sets of equal count n with its interval. ValueError with the reason if it says nothing.

    The interval is the estimate plus and minus 1.96 standard errors by the jackknife: each pair (x_i, y_i) is left out
    once, which the row sums of the kernel matrices give without computing anything again. Nothing is drawn.
    """
    if len(first) != len(second):
        raise ValueError(f"sets of {len(first)} and {len(second)} images: expected equally many")
    _check(first, second, MIN_IMAGES)
    n = len(first)
    a = _row_sums(first, first) - _diagonal(first, first)  # [n], sum over j != i of k(x_i, x_j)
    b = _row_sums(second, second) - _diagonal(second, second)
    c, e, g = _row_sums(first, second), _row_sums(second, first), _diagonal(first, second)
    value = float((a.sum() + b.sum()) / (n * (n - 1)) - 2 * c.sum() / n**2)
    # without pair i: row and column i leave both triangles (2 a_i), row i and column i the cross term (c_i + e_i - g_i)
    within = (a.sum() - 2 * a + b.sum() - 2 * b) / ((n - 1) * (n - 2))
    left_out = within - 2 * (c.sum() - c - e + g) / (n - 1) ** 2
    error = Z * float(np.sqrt((n - 1) / n * np.square(left_out - left_out.mean()).sum()))
    return Figure(value, (value - error, value + error), n, extractor, real)


def line(name: str, shown: Figure, baseline: Figure) -> str:
    """One line with a figure and all that belongs beside it. Raises ValueError where the baseline is not comparable."""
    from pipeline.past.comparable import why_not

    reason = why_not(shown.json(), baseline.json())
    if reason:
        raise ValueError(f"{name} and its baseline cannot be compared: {reason}")
    return (
        f"{name} {shown.value:.3g} [{shown.interval[0]:.3g}, {shown.interval[1]:.3g}], real data {baseline.value:.3g} "
        f"[{baseline.interval[0]:.3g}, {baseline.interval[1]:.3g}], {shown.images} images a set"
    )


def _row_sums(first: Features, second: Features) -> Features:
    """Sums over the rows of the kernel matrix: [n], of features [n, d] and [m, d]."""
    parts = [_kernel(first[at : at + CHUNK] @ second.T, first.shape[1]).sum(1) for at in range(0, len(first), CHUNK)]
    return np.concatenate(parts)


def _diagonal(first: Features, second: Features) -> Features:
    """k(x_i, y_i): [n]."""
    return _kernel(np.einsum("nd,nd->n", first, second), first.shape[1])


def _kernel(products: Features, width: int) -> Features:
    result: Features = (products / width + 1) ** 3
    return result


def _check(first: Features, second: Features, least: int) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"expected features [n, d] and [m, d], got {first.shape} and {second.shape}")
    if min(len(first), len(second)) < least:
        raise ValueError(f"{min(len(first), len(second))} images are too few; at least {least} are needed")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("features are not finite; look at the images and the extractor")
