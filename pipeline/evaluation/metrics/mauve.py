"""MAUVE (Pillutla et al. 2021, "MAUVE: Measuring the Gap Between Neural Text and Human Text using Divergence
Frontiers"): how much of two sets of embeddings lies in the same places. Arrays in, a number in (0, 1] out; 1: alike.

Embeddings of both sets are put into k clusters, P and Q are the shares of each set in these; of the mixtures
R = w P + (1 - w) Q the points (exp(-c KL(Q | R)), exp(-c KL(P | R))) make a curve, and MAUVE is the area under it. It
grows smaller with fewer texts a cluster: compared are sets of equally many, each beside real text.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
SCALE = 5.0  # c, as the paper has it
MIXTURES = 25  # w, evenly in (0, 1)
TEXTS = 10  # a cluster of each set, on average
EXPLAINED = 0.9  # share of the variance that is kept before clusters are sought
LEAST = 20  # texts a set: of fewer there are no clusters


def mauve(first: Array, second: Array, seed: int = 0) -> float:
    """Of embeddings float [n, d] and [m, d]. ValueError for too few of them."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    n = min(len(first), len(second))
    if n < LEAST:
        raise ValueError(f"{n} texts a set are too few for clusters; at least {LEAST} are needed")
    both = np.concatenate([first, second]).astype(np.float64)
    both /= np.linalg.norm(both, axis=1, keepdims=True).clip(1e-12)
    small = PCA(EXPLAINED, svd_solver="full").fit_transform(both)
    place = KMeans(round(n / TEXTS), n_init=5, max_iter=500, random_state=seed).fit_predict(small)
    counts = [np.bincount(of, minlength=place.max() + 1) for of in (place[: len(first)], place[len(first) :])]
    return area(*(count / count.sum() for count in counts))


def area(p: Array, q: Array) -> float:
    """The area under the curve of two distributions [k]."""
    points = [(0.0, 1.0)]  # exp(-c inf): all mass on one of them
    for w in np.linspace(1e-6, 1 - 1e-6, MIXTURES):
        r = w * p + (1 - w) * q
        points.append((np.exp(-SCALE * _divergence(q, r)), np.exp(-SCALE * _divergence(p, r))))
    x, y = np.array([*points, (1.0, 0.0)]).T
    return float((_under(x, y) + _under(y, x)) / 2)


def _divergence(p: Array, r: Array) -> float:
    """KL(p | r) in nats; where p is 0 it adds nothing."""
    there = p > 0
    return float((p[there] * np.log(p[there] / r[there])).sum())


def _under(x: Array, y: Array) -> float:
    order = np.lexsort((-y, x))  # y falls as x rises, at equal x as well
    return float(np.trapezoid(y[order], x[order]))
