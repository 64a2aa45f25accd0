"""Precision, recall, density and coverage: known layouts, brute force, and what equal distributions give."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.metrics import manifold


def measure(real: np.ndarray, samples: np.ndarray) -> manifold.Manifold:
    return manifold.measure(real, samples, extractor="e", real_digest="r")


def normal(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def brute(real: np.ndarray, samples: np.ndarray) -> tuple[float, float, float, float]:
    """The definitions, point by point."""

    def radius(points: np.ndarray, i: int, k: int) -> float:
        return sorted(np.linalg.norm(points[i] - other) for j, other in enumerate(points) if j != i)[k - 1]

    def inside(point: np.ndarray, points: np.ndarray, i: int, k: int) -> bool:
        return bool(np.linalg.norm(point - points[i]) <= radius(points, i, k))

    n = len(real)
    near, wide = manifold.PRECISION_K, manifold.COVERAGE_K
    precision = np.mean([any(inside(s, real, i, near) for i in range(n)) for s in samples])
    recall = np.mean([any(inside(r, samples, i, near) for i in range(n)) for r in real])
    density = sum(inside(s, real, i, wide) for s in samples for i in range(n)) / (wide * n)
    coverage = np.mean([any(inside(s, real, i, wide) for s in samples) for i in range(n)])
    return float(precision), float(recall), float(density), float(coverage)


def test_equals_the_definitions() -> None:
    real, samples = normal(30, 2, 0), normal(30, 2, 1) * 1.5 + 0.5
    found = measure(real, samples)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(brute(real, samples))
    assert found.images == 30


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, samples = normal(40, 3, 0), normal(40, 3, 1)
    whole = measure(real, samples)
    monkeypatch.setattr(manifold, "CHUNK", 7)
    assert measure(real, samples) == whole


def test_radii_on_a_line() -> None:
    points = np.array([[0.0], [1.0], [3.0], [7.0]])
    assert manifold.radii(points, 1).tolist() == [1, 1, 2, 4]
    assert manifold.radii(points, 3).tolist() == [7, 6, 4, 7]
    assert manifold.radii(np.zeros((4, 2)), 2).tolist() == [0, 0, 0, 0]  # equal points are neighbours
    with pytest.raises(ValueError, match="no 4 neighbours"):
        manifold.radii(points, 4)


def test_one_kind_only_is_precise_and_not_complete() -> None:
    real = np.concatenate([normal(50, 2, 0), normal(50, 2, 1) + 100])  # two kinds, far apart
    found = measure(real, normal(100, 2, 2))
    assert found.precision > 0.9 and found.density > 0.5
    assert 0.4 < found.recall <= 0.5 and 0.4 < found.coverage <= 0.5


def test_something_else_is_neither() -> None:
    found = measure(normal(60, 2, 0), normal(60, 2, 1) + 50)
    assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)


def test_copies_are_all_inside() -> None:
    real = normal(60, 2, 0)
    found = measure(real, real.copy())
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_an_outlier_moves_precision_and_not_density() -> None:
    real, samples = normal(100, 2, 0), np.random.default_rng(1).uniform(-9, 9, (100, 2))
    odd = np.concatenate([real[:-1], [[40.0, 40.0]]])
    before, after = measure(real, samples), measure(odd, samples)
    assert after.precision > before.precision + 0.3  # its ball is huge
    assert after.density < before.density + 0.35


def test_equal_distributions_have_the_expectations_that_are_known() -> None:
    """Naeem et al. (2020): density 1; coverage 1 - (N-1)...(N-k) / ((2N-1)...(2N-k)) at equal counts N."""
    n, k = 60, manifold.COVERAGE_K
    found = [measure(normal(n, 3, 2 * i), normal(n, 3, 2 * i + 1)) for i in range(60)]
    steps = np.arange(1, k + 1)
    expected = 1 - float(np.prod((n - steps) / (2 * n - steps)))
    for name, value in (("coverage", expected), ("density", 1.0)):
        values = [getattr(one, name) for one in found]
        assert abs(np.mean(values) - value) < 4 * np.std(values) / np.sqrt(len(values)), name


def test_unequal_counts_are_refused_and_the_line_has_the_baseline() -> None:
    with pytest.raises(ValueError, match="depend on the count"):
        measure(normal(20, 2, 0), normal(21, 2, 0))
    found = measure(normal(20, 2, 0), normal(20, 2, 1))
    assert manifold.line(found, found).count("real data") == 4
    with pytest.raises(ValueError, match="cannot be compared"):
        manifold.line(found, measure(normal(21, 2, 0), normal(21, 2, 1)))
