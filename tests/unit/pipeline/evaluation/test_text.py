"""Figures of texts against values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.evaluation import text_scores
from pipeline.evaluation.metrics import text as measures


def test_words():
    assert measures.words_of("It's “so”, he said: 3.") == ["it's", "“", "so", "”", ",", "he", "said", ":", "3", "."]
    assert measures.words_of("Grüße 你好") == ["grüße", "你好"] and measures.words_of(" ") == []


def test_entropy_is_that_of_the_shares():
    assert measures.entropy([["a", "b"], ["c", "d"]]) == 2
    assert measures.entropy([["a"] * 5]) == 0 and measures.entropy([]) == 0
    assert measures.entropy([["a", "a", "b", "c"]]) == pytest.approx(1.5)


def test_distinct_bigrams_do_not_go_over_the_end_of_a_text():
    assert measures.distinct([["a", "b", "a", "b"]]) == pytest.approx(2 / 3)
    assert measures.distinct([["a", "b"], ["c", "d"]]) == 1
    assert math.isnan(measures.distinct([["a"], []]))


def test_sets_are_cut_to_equally_many_words():
    one, two = measures.as_many_words([[["a"] * 3, ["b"] * 3], [["c"] * 4]])
    assert one == [["a"] * 3, ["b"]] and two == [["c"] * 4]


def test_copied_runs():
    training = measures.known([list("abcdefghij")])
    assert measures.copied([list("abcdefgh")], training) == 1
    assert measures.copied([list("abcdefghxxxxxxxx")], training) == pytest.approx(1 / 9)
    assert measures.copied([list("hgfedcba")], training) == 0 and math.isnan(measures.copied([list("abc")], training))


def test_a_classifier_of_words_finds_the_class():
    train = ["sun and sea", "sea and sand", "snow and ice", "ice and frost"]
    sets = {"a": (["the sea", "sand"], [0, 0]), "b": (["frost", "sun"], [1, 1])}
    assert measures.classes_right(train, [0, 0, 1, 1], sets) == {"a": 1.0, "b": 0.5}
    with pytest.raises(ValueError, match="one class"):
        measures.classes_right(train, [0] * 4, sets)


def test_what_the_judge_is_told():
    train, real, asked = np.array([0, -1, 1]), np.array([1, 0]), np.array([0, 1, 0])
    assert text_scores._said([], train, real, None, 3, None) is None
    found = text_scores._said(["a", "b"], train, real, asked, 3, None)
    assert found == (["a", "", "b"], ["b", "a"], ["a", "b", "a"])
    found = text_scores._said([], train, real, None, 3, (["x", "", "z"], ["u", "v"]))
    assert found == (["x", "", "z"], ["u", "v"], ["u", "v", "u"])
    found = text_scores._said(["a", "b"], train, real, asked, 3, (["x", "", "z"], ["u", "v"]))
    assert found == (["a: x", "", "b: z"], ["b: u", "a: v"], ["a: u", "b: v", "a: u"])


def test_a_set_beside_real_text():
    real = [f"The {word} old river ran past a quiet town." for word in ("wide", "slow", "cold", "deep")]
    train = ["A quiet town, and the slow old river ran past a quiet town."]
    figures, missing = text_scores.compare({"samples": ["so so so so so so so so so"] * 4, "real": real}, train)
    assert not missing and figures["entropy"]["samples"] == 0 < figures["entropy"]["real"]
    assert figures["distinct_2"]["samples"] < 0.1 < figures["distinct_2"]["real"]
    assert figures["copied_8"]["samples"] == 0 < figures["copied_8"]["real"]
    same, _ = text_scores.compare({"samples": real[:1], "real": real, "yardstick": real}, train)
    assert same["entropy"]["real"] == same["entropy"]["yardstick"]  # of as many words as the samples have
    figures, missing = text_scores.compare({"samples": ["so"], "real": real}, train)
    assert set(missing) == {"distinct_2", "copied_8"} and set(figures) == {"words", "entropy"}
    report = {"text": figures, "reconstruction": {"tokens": 0.5, "passages": 0.25, "cut": 0.0}, "missing": missing,
              "images": {"held_out": 4, "samples": 1}}  # fmt: skip
    assert text_scores.key_figures(report)["entropy_real"] == figures["entropy"]["real"]
    assert "50.00% of held-out tokens exact" in text_scores.headline(text_scores.key_figures(report))
    report["text"] |= {"infill_perplexity": {"samples": 30.0, "real": 20.0, "random": 90.0, "passages": 7}}
    assert any("30 of 7 passages, 20 of the passages themselves" in line for line in text_scores.lines(report))
    assert any("copied_8 is not given" in line for line in text_scores.lines(report))
