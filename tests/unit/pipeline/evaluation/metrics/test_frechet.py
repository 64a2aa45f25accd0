"""The Fréchet distance against closed forms and torchmetrics; what makes a figure comparable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.metrics import frechet


def normal(n: int, d: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) * scale + shift


def figure(first: np.ndarray, second: np.ndarray, **rest) -> frechet.Figure:
    return frechet.figure(first, second, **{"extractor": "e", "real": "r", "resamples": 20, "seed": 0, **rest})


def whitened(n: int, d: int, seed: int) -> np.ndarray:
    """Mean exactly 0, covariance exactly 1."""
    x = normal(n, d, seed)
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T


@pytest.mark.parametrize("function", [frechet.distance, frechet.fast_distance])
def test_closed_form_of_diagonal_gaussians(function) -> None:
    # |m1 - m2|^2 + sum (s1 - s2)^2, here with means 3 and 0, deviations (1, 2, 3, 4) and 2
    first = whitened(200, 4, 0) * np.array([1, 2, 3, 4]) + 3
    second = whitened(150, 4, 1) * 2
    assert function(first, second) == pytest.approx(4 * 9 + 1 + 0 + 1 + 4, abs=1e-8)


@pytest.mark.parametrize("function", [frechet.distance, frechet.fast_distance])
def test_closed_form_of_correlated_gaussians(function) -> None:
    # 2x2: tr((S1 S2)^(1/2)) = sqrt(tr(S1 S2) + 2 sqrt(det(S1 S2)))
    s1, s2 = np.array([[2.0, 0.8], [0.8, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    first, second = (whitened(300, 2, i) @ np.linalg.cholesky(s).T for i, s in enumerate((s1, s2)))
    cross = np.sqrt(np.trace(s1 @ s2) + 2 * np.sqrt(np.linalg.det(s1 @ s2)))
    assert function(first, second) == pytest.approx(np.trace(s1) + np.trace(s2) - 2 * cross, abs=1e-8)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 60), m=st.integers(3, 60), d=st.integers(1, 24), seed=st.integers(0, 99))
def test_both_forms_agree_also_with_fewer_images_than_features(n: int, m: int, d: int, seed: int) -> None:
    first, second = normal(n, d, seed, 2.0, 1.0), normal(m, d, seed + 100)
    assert frechet.fast_distance(first, second) == pytest.approx(frechet.distance(first, second), rel=1e-5, abs=1e-5)


def test_equals_torchmetrics_on_images_with_a_module_as_extractor() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).double() / 255

    random = np.random.default_rng(0)
    first, second = (random.integers(0, top, (80, 3, 2, 2)).astype(np.uint8) for top in (255, 200))
    metric = FrechetInceptionDistance(feature=Flat())
    for images, real in ((first, True), (second, False)):
        for part in np.split(images, 4):
            metric.update(torch.from_numpy(part), real=real)
    own = frechet.distance(first.reshape(80, -1) / 255, second.reshape(80, -1) / 255)
    assert own == pytest.approx(float(metric.compute()), abs=1e-9)


def test_a_large_common_mean_costs_no_digits() -> None:
    first, second = normal(100, 8, 0), normal(100, 8, 1)
    assert frechet.distance(first + 1e6, second + 1e6) == pytest.approx(frechet.distance(first, second), abs=1e-6)


def test_the_estimate_falls_with_the_count() -> None:
    """The reason for equal counts: both sets are of one distribution, and yet the distance is not 0."""
    small = np.mean([frechet.fast_distance(normal(50, 8, i), normal(50, 8, i + 50)) for i in range(20)])
    large = np.mean([frechet.fast_distance(normal(400, 8, i), normal(400, 8, i + 50)) for i in range(20)])
    assert small > 4 * large


def test_figure_has_an_interval_around_it_that_shrinks_with_the_count() -> None:
    small, large = (figure(normal(n, 4, 0), normal(n, 4, 1, shift=1.0)) for n in (60, 2000))
    for found in (small, large):
        assert found.interval[0] < found.value < found.interval[1]
        assert not found.rank_deficient
    assert large.interval[1] - large.interval[0] < 0.5 * (small.interval[1] - small.interval[0])
    assert (small.images, small.features) == (60, 4)


def test_the_interval_covers_the_distance_of_other_draws() -> None:
    found = figure(normal(200, 4, 0), normal(200, 4, 1, scale=2.0), resamples=100)
    others = [frechet.fast_distance(normal(200, 4, 2 * i), normal(200, 4, 2 * i + 1, scale=2.0)) for i in range(5, 45)]
    inside = np.mean([found.interval[0] <= value <= found.interval[1] for value in others])
    assert inside >= 0.8


def test_figure_is_a_function_of_its_seed() -> None:
    first, second = normal(60, 3, 0), normal(60, 3, 1)
    assert figure(first, second) == figure(first, second)
    assert figure(first, second).interval != figure(first, second, seed=1).interval


def test_fewer_images_than_features_is_said() -> None:
    assert figure(normal(60, 80, 0), normal(60, 80, 1), resamples=2).rank_deficient


def test_what_says_nothing_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="depends on the count"):
        figure(normal(60, 3), normal(70, 3))
    with pytest.raises(ValueError, match="too few"):
        figure(normal(49, 3), normal(49, 3))
    with pytest.raises(ValueError, match="not finite"):
        figure(np.full((60, 3), np.nan), normal(60, 3))
    with pytest.raises(ValueError, match="expected features"):
        frechet.distance(normal(60, 3), normal(60, 4))


def test_only_like_is_compared_with_like() -> None:
    found = figure(normal(60, 3, 0), normal(60, 3, 1))
    assert frechet.why_not_comparable(found, found) is None
    assert "extractors" in str(frechet.why_not_comparable(found, replace(found, extractor="other")))
    assert "61 images" in str(frechet.why_not_comparable(found, replace(found, images=61)))
    assert "real images" in str(frechet.why_not_comparable(found, replace(found, real="other")))
    with pytest.raises(ValueError, match="cannot be compared"):
        frechet.line("distance", found, replace(found, images=61))


def test_line_has_all_that_belongs_to_a_figure_and_json_comes_back() -> None:
    found = figure(normal(60, 3, 0), normal(60, 3, 1), extractor="0123456789abcdef")
    text = frechet.line("distance", found, found)
    for part in ("real data", "60 images", "0123456789ab", f"{found.interval[0]:.3g}", f"{found.value:.3g}"):
        assert part in text
    assert frechet.Figure.of({**found.json(), "interval": list(found.interval)}) == found


def test_a_gap_to_the_baseline_is_seen_where_both_intervals_overlap() -> None:
    """Few images of heavy tails: what the common set does to both distances is no part of the gap."""
    how = {"extractor": "e", "real": "r", "resamples": 100, "seed": 0}
    train, held_out, other = (np.random.default_rng(i).standard_t(4, (90, 8)) for i in range(3))
    real, near, far = (frechet.measured(rows, held_out, **how) for rows in (train, other, 1.35 * other))
    assert far[0].interval[0] < real[0].interval[1]  # by these two alone samples would not be told from real ones
    told, untold = frechet.gap(far, real), frechet.gap(near, real)
    assert told["interval"][0] > 0 and told["value"] == far[0].value - real[0].value
    assert untold["interval"][0] < 0 < untold["interval"][1]
    assert frechet.figure(train, held_out, **how) == real[0]
