"""AUC and the true positive rate: against their definitions, and how often the intervals hold what they should."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.metrics import membership


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def test_the_auc_is_the_share_of_pairs_in_order() -> None:
    members, others = draw(0).integers(0, 9, 40).astype(float), draw(1).integers(0, 7, 25).astype(float)
    pairs = (members[:, None] > others).mean() + 0.5 * (members[:, None] == others).mean()
    value, low, high = membership.auc(members, others)
    assert value == pytest.approx(pairs) and 0 < low < value < high < 1


def test_the_interval_is_delongs() -> None:
    members, others = draw(2).normal(0.5, 1, 30), draw(3).normal(0, 1, 50)
    above = (members[:, None] > others).astype(float)
    variance = above.mean(1).var(ddof=1) / 30 + above.mean(0).var(ddof=1) / 50
    _, low, high = membership.auc(members, others)
    width = 2 * 1.96 * variance**0.5
    assert abs((high - low) / width - 1) < 0.05  # on the logit it is nearly as wide


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(shift: float) -> None:
    from scipy.stats import norm

    truth, held = norm.cdf(shift / 2**0.5), 0
    for seed in range(300):
        both = draw(seed).normal(size=(2, 60))
        _, low, high = membership.auc(both[0] + shift, both[1])
        held += low <= truth <= high
    assert 0.91 < held / 300 <= 0.985


def test_complete_order_has_an_interval_too() -> None:
    value, low, high = membership.auc(np.arange(30) + 100.0, np.arange(40.0))
    assert value == high == 1 and low == pytest.approx(0.025 ** (1 / 30))
    assert membership.auc(np.arange(30.0), np.arange(40) + 100.0)[:2] == (0, 0)
    with pytest.raises(ValueError, match="2 of either"):
        membership.auc(np.ones(1), np.ones(9))


def test_the_rate_counts_members_above_all_but_few_others() -> None:
    others = np.arange(200.0)  # two of them, 198 and 199, are above the threshold 197
    value, low, high = membership.found(np.array([196.0, 197.0, 197.5, 300.0] * 5), others)
    assert value == 0.5 and low < 0.5 < high
    assert membership.found(np.full(20, 99.5), np.arange(50.0))[0] == 1  # with 50 none may be above


def test_the_rate_of_scores_that_say_nothing_is_one_percent() -> None:
    both = draw(5).normal(size=(2, 1500))
    value, low, high = membership.found(*both)
    assert low < 0.01 < high and value < 0.02
