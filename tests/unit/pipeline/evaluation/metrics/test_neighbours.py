"""Nearest rows against a plain search; shares of copies."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.metrics import neighbours


def test_nearest_equals_a_plain_search_over_several_chunks() -> None:
    random = np.random.default_rng(0)
    queries, train = random.standard_normal((300, 5)), random.standard_normal((9000, 5)) + 3
    distances, indices = neighbours.nearest(queries, train)
    plain = np.linalg.norm(queries[:, None] - train[None], axis=2)
    assert np.array_equal(indices, plain.argmin(1))
    assert np.allclose(distances, plain.min(1), rtol=1e-12)


def test_copies_are_at_distance_exactly_zero() -> None:
    train = np.random.default_rng(0).integers(0, 256, (500, 3072)).astype(np.uint8)
    distances, indices = neighbours.nearest(train[100:110], train)
    assert np.array_equal(indices, np.arange(100, 110))
    assert np.array_equal(distances, np.zeros(10))


def test_share_of_copies() -> None:
    held_out = np.linspace(1, 2, 1000)
    samples = np.concatenate([np.zeros(30), np.full(70, 1.5)])
    found = neighbours.nearness("pixels", samples, held_out, train=10)
    assert found.share_below == 0.3
    assert found.held_out_share_below == pytest.approx(0.01)
    assert found.threshold == pytest.approx(np.percentile(held_out, 1))
    assert (found.sample_median, found.held_out_median) == (1.5, 1.5)
    assert (found.samples, found.held_out, found.train) == (100, 1000, 10)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="m > 0"):
        neighbours.nearest(np.zeros((3, 2)), np.zeros((0, 2)))
    with pytest.raises(ValueError, match="at least one"):
        neighbours.nearness("pixels", np.zeros(0), np.ones(3), train=3)
