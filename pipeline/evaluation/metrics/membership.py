"""Membership inference: can it be told by a number (a loss) whether an image was trained on? Arrays in, figures out.

A score is higher where an image looks trained on. The area under the curve (AUC) is the chance that a training image
has a higher score than a held-out one: 0.5 where nothing is to be told. It is a mean over all images; whether some can
be told for certain is the true positive rate at a low false positive rate (Carlini et al. 2022, "Membership Inference
Attacks From First Principles"). How scores are had is `pipeline/evaluation/attack.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import rankdata

from pipeline.evaluation.metrics.classes import wilson
from pipeline.evaluation.metrics.kernel import Z

Array = np.ndarray[Any, np.dtype[Any]]
RATE = 0.01  # false positives at which true ones are counted
RESAMPLES = 1000
LEAST = 20  # images of either kind


def auc(members: Array, others: Array) -> tuple[float, float, float]:
    """The AUC of scores float [m] of training and [n] of held-out images, ties half, and its 95% interval.

    The variance is that of DeLong, DeLong and Clarke-Pearson (1988), by ranks as Sun and Xu (2014); the interval is
    taken on the logit, so that it stays in [0, 1]. Where no pair is out of order the variance is 0: then it is the
    exact one of min(m, n) pairs without a common image. ValueError for fewer than two of either.
    """
    m, n = len(members), len(others)
    if min(m, n) < 2:
        raise ValueError(f"{m} and {n} scores, 2 of either at least")
    ranks = rankdata(np.concatenate([members, others]))
    v10 = (ranks[:m] - rankdata(members)) / n  # share of the others below each member
    v01 = 1 - (ranks[m:] - rankdata(others)) / m  # share of the members above each other
    value = float(v10.mean())
    deviation = float(np.sqrt(v10.var(ddof=1) / m + v01.var(ddof=1) / n))
    if not 0 < value < 1:
        bound = 0.025 ** (1 / min(m, n))  # at which all pairs are in order in 2.5% of the draws
        return value, (bound if value == 1 else 0.0), (1.0 if value == 1 else 1 - bound)
    half = Z * deviation / (value * (1 - value))  # by the derivative of the logit
    return value, float(expit(logit(value) - half)), float(expit(logit(value) + half))


def found(members: Array, others: Array, rate: float = RATE) -> tuple[float, float, float]:
    """The share of training images whose score is above all but a share `rate` of the held-out ones', and its 95%
    interval: that of the share (Wilson), or where it is wider that of resampled held-out images, since they give the
    threshold. Fewer than 1 / rate of these give that of no false positive."""
    value = float((members > _threshold(others, rate)).mean())
    low, high = wilson(round(value * len(members)), len(members))
    draw = np.random.Generator(np.random.Philox(0))
    above = np.sort(members)
    again = np.sort(others[draw.integers(len(others), size=(RESAMPLES, len(others)))], axis=1)
    limits = again[:, _place(len(others), rate)]
    shares = 1 - np.searchsorted(above, limits, side="right") / len(members)
    return value, min(low, float(np.quantile(shares, 0.025))), max(high, float(np.quantile(shares, 0.975)))


def _place(count: int, rate: float) -> int:
    """Where among `count` ascending scores the threshold lies: at most a share `rate` of them is above it."""
    return count - 1 - int(rate * count)


def _threshold(others: Array, rate: float) -> float:
    return float(np.sort(others)[_place(len(others), rate)])
