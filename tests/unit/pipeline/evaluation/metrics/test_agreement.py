"""Figures of agreement where the answer is known: shares, ranks, chance."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.metrics import agreement

COLOUR = {"kind": "categorical", "values": ["blue", "red"]}
WORN = {"kind": "multi_label", "values": ["hat", "scarf"]}
AGE = {"kind": "continuous", "range": [10, 30]}


def test_shares_leave_out_what_is_not_known_and_all_needs_every_column() -> None:
    columns = {"colour": COLOUR, "worn": WORN, "age": AGE}
    answers = {
        "colour": np.array([[1, 0], [0, 1], [0, 1], [1, 0]], np.float32),
        "worn": np.array([[1, -1], [1, 1], [-1, -1], [1, 1]], np.float32),
        "age": np.array([[0.5], [0.5], [0.0], [0.9]], np.float32),
    }
    told = {
        "colour": np.array([0, 0, 1, 2]),  # 2: not known
        "worn": np.array([[1, 0], [1, 1], [-1, -1], [1, 0]], np.float32),  # -1: not known
        "age": np.array([0.5, 0.25, -1, 0.9], np.float32),
    }
    found = agreement.shares(columns, answers, told)
    assert found["colour"]["right"] == pytest.approx(2 / 3) and found["colour"]["count"] == 3
    assert found["worn"]["right"] == pytest.approx(2 / 3)  # the last one has a scarf that was not told
    assert found["all"] == {**found["all"], "right": 0.5, "count": 2}
    assert found["age"] == {"error": pytest.approx(20 * 0.25 / 3), "count": 3}
    nothing = {"colour": np.full(4, 2), "worn": np.full((4, 2), -1.0), "age": np.full(4, -1.0)}
    assert agreement.shares(columns, answers, nothing) == {}


def test_other_rows_are_chance() -> None:
    told = {"colour": np.arange(100) % 2}
    answers = {"colour": np.eye(2)[told["colour"]]}
    assert agreement.shares({"colour": COLOUR}, answers, told)["colour"]["right"] == 1
    assert agreement.shuffled({"colour": COLOUR}, answers, told) == {"colour": {"right": 0.5}}


def test_ranks_count_equal_scores_against() -> None:
    scores = np.array([[3, 2, 1], [3, 2, 1], [0, 0, 0]])
    assert agreement.ranks(scores, np.array([0, 2, 1])).tolist() == [1, 3, 3]


def test_recall_of_drawn_ranks_is_the_formula() -> None:
    own = np.arange(50)
    scores = np.random.Generator(np.random.Philox(0)).standard_normal((20_000, 50))
    found = agreement.recall(agreement.ranks(scores, np.resize(own, 20_000)), 50)
    for name, value in agreement.recall_chance(50).items():
        assert found[name] == pytest.approx(value, rel=0.1)
    assert agreement.recall(np.array([1, 2, 6, 50]), 50) == {
        "recall_1": 0.25, "recall_5": 0.5, "recall_10": 0.75, "median_rank": 4.0,
    }  # fmt: skip
    assert "recall_10" not in agreement.recall_chance(10)  # all of them are among ten
    perfect = np.eye(50)
    assert agreement.recall(agreement.ranks(perfect, own), 50)["recall_1"] == 1
    assert agreement.recall_shuffled(perfect, own)["recall_1"] == 0


def test_equal_texts_are_one_candidate() -> None:
    texts, own = agreement.distinct(["b", "a", "b"])
    assert texts == ["b", "a"] and own.tolist() == [0, 1, 0]
