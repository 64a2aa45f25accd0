"""The kernel distance against its closed form, brute force and torchmetrics; its jackknife and interval."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch

from pipeline.evaluation.metrics import kernel


def normal(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) * scale + shift


def figure(first: np.ndarray, second: np.ndarray) -> kernel.Figure:
    return kernel.figure(first, second, extractor="e", real="r")


def brute(first: np.ndarray, second: np.ndarray) -> float:
    d = first.shape[1]

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        values = [
            (np.dot(x, y) / d + 1) ** 3 for i, x in enumerate(a) for j, y in enumerate(b) if not (same and i == j)
        ]
        return float(np.mean(values))

    return mean(first, first, True) + mean(second, second, True) - 2 * mean(first, second, False)


def closed_form(mean: float, scale: float, other_mean: float, other_scale: float) -> float:
    """Of two Gaussians on a line: k(a, b) = (ab + 1)^3 = sum of binom(3, p) a^p b^p, so moments up to the third."""

    def moments(m: float, s: float) -> list[float]:
        return [1.0, m, m**2 + s**2, m**3 + 3 * m * s**2]

    pairs = zip(moments(mean, scale), moments(other_mean, other_scale), strict=True)
    return sum(comb(3, p) * (a - b) ** 2 for p, (a, b) in enumerate(pairs))


def test_equals_brute_force_for_unequal_counts() -> None:
    first, second = normal(9, 4, 0, 2.0), normal(13, 4, 1, shift=1.0)
    assert kernel.distance(first, second) == pytest.approx(brute(first, second), rel=1e-12)


def test_equals_torchmetrics() -> None:
    from torchmetrics.image.kid import poly_mmd

    first, second = normal(1100, 6, 0), normal(1100, 6, 1, shift=0.3)  # more rows than a chunk holds
    theirs = poly_mmd(torch.from_numpy(first), torch.from_numpy(second))
    assert kernel.distance(first, second) == pytest.approx(float(theirs), rel=1e-9)
    assert figure(first, second).value == pytest.approx(float(theirs), rel=1e-9)


@pytest.mark.parametrize("count", [5, 50])
def test_its_mean_is_the_closed_form_at_any_count(count: int) -> None:
    values = [kernel.distance(normal(count, 1, 2 * i, 0.7, 0.4), normal(count, 1, 2 * i + 1, 0.5)) for i in range(1000)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - closed_form(0.4, 0.7, 0, 0.5)) < 4 * error
    assert error < 0.15


def test_equal_distributions_are_at_zero_on_average_unlike_the_frechet_distance() -> None:
    values = [kernel.distance(normal(20, 4, 2 * i), normal(20, 4, 2 * i + 1)) for i in range(1000)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


def test_the_interval_is_the_jackknife_of_pairs() -> None:
    first, second = normal(12, 3, 0), normal(12, 3, 1, shift=0.5)
    found = figure(first, second)
    left = np.array([brute(np.delete(first, i, 0), np.delete(second, i, 0)) for i in range(12)])
    error = 1.959964 * np.sqrt(11 / 12 * np.square(left - left.mean()).sum())
    assert found.interval == pytest.approx((found.value - error, found.value + error), rel=1e-6)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = closed_form(0.5, 0.5, 0, 0.5)
    found = [figure(normal(150, 1, 2 * i, 0.5, 0.5), normal(150, 1, 2 * i + 1, 0.5)).interval for i in range(200)]
    inside = np.mean([low <= truth <= high for low, high in found])
    assert 0.88 <= inside <= 0.99


def test_a_figure_says_what_it_rests_on_and_is_json() -> None:
    found = figure(normal(60, 3, 0), normal(60, 3, 1))
    assert kernel.Figure(**found.json()) == found
    assert "60 images" in kernel.line("kernel distance", found, found)
    with pytest.raises(ValueError, match="60 and 61 images"):
        kernel.line("kernel distance", found, figure(normal(61, 3, 0), normal(61, 3, 1)))


def test_what_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected equally many"):
        figure(normal(6, 3, 0), normal(7, 3, 0))
    with pytest.raises(ValueError, match="at least 3"):
        figure(normal(2, 3, 0), normal(2, 3, 0))
    with pytest.raises(ValueError, match="expected features"):
        kernel.distance(normal(6, 3, 0), normal(6, 4, 0))
    with pytest.raises(ValueError, match="not finite"):
        kernel.distance(normal(6, 3, 0), normal(6, 3, 0) * np.nan)
