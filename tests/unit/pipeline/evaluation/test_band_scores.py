"""How bands hang together: the covariance between them."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation import band_scores


def drawn(covariance, seed, n=64):
    """Images [n, 16, 16, C] of pixels with this covariance."""
    random = np.random.default_rng(seed)
    return random.multivariate_normal(np.zeros(len(covariance)), covariance, (n, 16, 16))


def test_the_distance_of_known_covariances():
    real = np.array([[2.0, 1.0], [1.0, 3.0]])
    apart = np.array([[2.0, 0.0], [0.0, 3.0]])  # the same bands, which say nothing of each other
    sets = {"samples": drawn(real, 1), "reconstructions": drawn(apart, 2), "held_out": 2 * drawn(real, 3)}
    found = band_scores.measure(drawn(real, 0), sets)
    assert found["samples"] < 0.05
    assert found["reconstructions"] == pytest.approx((2 / 15) ** 0.5, abs=0.03)
    assert found["held_out"] == pytest.approx(3, abs=0.1)
    assert band_scores.measure(np.ones((4, 2, 2, 2)), sets) == {}  # nothing to be a share of


def test_it_stands_beside_that_of_held_out_images():
    measured = {"samples": 0.125, "held_out": 0.25, "reconstructions": 0.3}
    figures = band_scores.key_figures(measured)
    assert figures == {
        "band_covariance": 0.125, "band_covariance_held_out": 0.25, "band_covariance_reconstructions": 0.3,
    }  # fmt: skip
    (line,) = band_scores.lines(measured)
    assert "12.5% of samples, 25.0% of held-out images" in line
    assert band_scores.key_figures({}) == {} and band_scores.lines({}) == []
