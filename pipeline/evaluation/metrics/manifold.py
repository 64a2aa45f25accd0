"""Precision and recall, density and coverage: whether samples are likely images, and whether all kinds of them occur.

The set of likely images is drawn as balls around features, each as large as the distance to its k-th neighbour of the
same set. Kynkäänniemi et al. (2019), k = 3, for the first two; Naeem et al. (2020), k = 5, for the others, which one
odd image does not change. A point on the edge of a ball is inside. All depend on the count.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
CHUNK = 1024  # rows of the matrix of distances at once
PRECISION_K = 3
COVERAGE_K = 5


@dataclass(frozen=True)
class Manifold:
    """precision: share of the samples inside a ball of a real image. recall: share of the real images inside a ball of
    a sample. density: balls of real images that a sample is in, over k, a mean (1 for equal distributions, may be
    above). coverage: share of the real images whose ball holds a sample. images: in each of the two sets.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    images: int
    extractor: str
    real: str

    def json(self) -> dict[str, Any]:
        return asdict(self)


def radii(points: Array, k: int) -> Array:
    """Distance float64 [n] of each point [n, d] to its k-th nearest among the others. ValueError if n <= k."""
    if len(points) <= k:
        raise ValueError(f"{len(points)} images have no {k} neighbours each; more are needed")
    found = np.empty(len(points))
    for at in range(0, len(points), CHUNK):
        gaps = _distances(points[at : at + CHUNK], points)  # [b, n]
        gaps[np.arange(len(gaps)), np.arange(at, at + len(gaps))] = np.inf  # not itself
        found[at : at + CHUNK] = np.partition(gaps, k - 1, axis=1)[:, k - 1]
    return found


def measure(real: Array, samples: Array, *, extractor: str, real_digest: str) -> Manifold:
    """All four from features [n, d] of real images and [n, d] of samples. ValueError for unequal or small counts."""
    if real.shape != samples.shape:
        raise ValueError(f"features {real.shape} and {samples.shape}: precision and recall depend on the count")
    near, wide = radii(real, PRECISION_K), radii(real, COVERAGE_K)
    sample_near = radii(samples, PRECISION_K)
    n = len(real)
    in_real, in_samples = np.zeros(n, bool), np.zeros(n, bool)
    covered, holding = np.zeros(n, bool), 0
    for at in range(0, n, CHUNK):
        rows = slice(at, at + CHUNK)
        gaps = _distances(real[rows], samples)  # [b, n], real images by samples
        in_real |= (gaps <= near[rows, None]).any(0)
        in_samples[rows] = (gaps <= sample_near).any(1)
        inside = gaps <= wide[rows, None]
        covered[rows] = inside.any(1)
        holding += int(inside.sum())
    return Manifold(
        precision=float(in_real.mean()),
        recall=float(in_samples.mean()),
        density=holding / (COVERAGE_K * n),
        coverage=float(covered.mean()),
        images=n,
        extractor=extractor,
        real=real_digest,
    )


def line(shown: Manifold, baseline: Manifold) -> str:
    """All four in one line, each beside that of real images. ValueError where the baseline is not comparable."""
    from pipeline.past.comparable import why_not

    reason = why_not(shown.json(), baseline.json())
    if reason:
        raise ValueError(f"samples and their baseline cannot be compared: {reason}")
    names = ("precision", "recall", "density", "coverage")
    parts = [f"{name} {getattr(shown, name):.3f} (real data {getattr(baseline, name):.3f})" for name in names]
    return f"{', '.join(parts)}, {shown.images} images a set"


def _distances(first: Array, second: Array) -> Array:
    """Euclidean distances float64 [n, m], of points [n, d] and [m, d]."""
    from scipy.spatial.distance import cdist

    gaps: Array = cdist(first, second)  # pair by pair: equal points are at exactly 0
    return gaps
