"""Probes of given representations: logistic and ridge regression, nearest neighbours, what they are judged by.

Which representations, and which images are for what, is the business of `pipeline/applications/probe.py`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
NEIGHBOURS, TEMPERATURE = 20, 0.07
PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)  # of an image and a number of the representation
STEPS = 300  # of L-BFGS at most
LEVEL = 0.95  # of the intervals
Fit = Callable[[Array, Array, float], Callable[[Array], Array]]  # x, y, penalty -> of other x the answers


def linear(x: Array, y: Array, penalty: float) -> Callable[[Array], Array]:
    """Logistic regression with squared weights at `penalty` times the images."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():  # early stopping is regularisation, which the tuning part judges as it does others
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=1 / (penalty * len(x)), max_iter=STEPS, tol=1e-3).fit(x, y).predict  # type: ignore[no-any-return]


def ridge(x: Array, y: Array, penalty: float) -> Callable[[Array], Array]:
    """Ridge regression with squared weights at `penalty` times the images."""
    from sklearn.linear_model import Ridge

    return Ridge(alpha=penalty * len(x)).fit(x.astype(np.float64), y).predict  # type: ignore[no-any-return]


def neighbours(x: Array, y: Array) -> Callable[[Array], Array]:
    """The k nearest neighbours by the cosine."""
    from sklearn.neighbors import KNeighborsClassifier

    def weights(distance: Array) -> Array:
        return np.exp((1 - distance) / TEMPERATURE)

    count = min(NEIGHBOURS, len(x))
    return KNeighborsClassifier(count, weights=weights, metric="cosine").fit(x, y).predict  # type: ignore[no-any-return]


def tuned(fit: Fit, score: Callable[[Array, Array], float], x: Array, y: Array, told: Array, tune: Array) -> Any:
    """The best score on the places `tune` of probes fitted to `told`, and its penalty: the strongest of several."""
    found = [(score(fit(x[told], y[told], penalty)(x[tune]), y[tune]), penalty) for penalty in PENALTIES]
    return max(found)


def right(answers: Array, truth: Array) -> float:
    """The share of right answers."""
    return float((answers == truth).mean())


def overlap(boxes: Array, truth: Array) -> float:
    """Mean intersection over union of boxes [n, 4] (x0, y0, x1, y1), the answers cut to [0, 1] and put in order."""
    a = np.clip(boxes, 0, 1)
    low, high = np.minimum(a[:, :2], a[:, 2:]), np.maximum(a[:, :2], a[:, 2:])
    sides = np.minimum(high, truth[:, 2:]) - np.maximum(low, truth[:, :2])
    inner = np.clip(sides, 0, None).prod(1)
    union = (high - low).prod(1) + (truth[:, 2:] - truth[:, :2]).prod(1) - inner
    return float((inner / union).mean())


def interval(each: Sequence[float], test: int | None) -> dict[str, Any]:
    """Mean of the seeds' figures with a 95% interval, by Student's t. test: the number of test images where all seeds
    share them: the error of a share of so many is added, since the seeds do not show it."""
    from scipy.stats import t

    mean, k = float(np.mean(each)), len(each)
    variance = float(np.var(each, ddof=1)) / k if k > 1 else 0.0
    half = float(t.ppf((1 + LEVEL) / 2, k - 1)) * math.sqrt(variance) if k > 1 else 0.0
    if test is not None:
        half = math.hypot(half, float(t.ppf((1 + LEVEL) / 2, test - 1)) * math.sqrt(mean * (1 - mean) / test))
    known = k > 1 or test is not None
    return {"mean": mean, "low": mean - half, "high": mean + half, "each": list(each)} if known else {"mean": mean}
