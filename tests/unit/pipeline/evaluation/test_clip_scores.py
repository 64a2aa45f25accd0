"""Flicker and frames of clips, and what is said of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.evaluation import clip_words
from pipeline.evaluation.clip_scores import flicker, frames_of


def test_flicker_is_the_mean_difference_of_successive_frames():
    clips = np.zeros((2, 3, 4, 4, 3), np.uint8)
    clips[0, 1], clips[1, 1:] = 255, 30  # there and back; once up
    assert flicker(clips) == pytest.approx((255 + 15) / 2)
    assert flicker(np.full((3, 5, 4, 4, 1), 200, np.uint8)) == 0
    assert math.isnan(flicker(clips[:, :1]))
    assert flicker(clips[:, ::-1]) == flicker(clips)
    np.testing.assert_array_equal(frames_of(clips)[4], clips[1, 1])


def test_flicker_stands_beside_that_of_real_clips():
    report = {"clips": {"frames": 9, "samples": 4, "held_out": 5, "compared": 3}}
    report["flicker"] = {"real": 2.0, "samples": 3.0, "reconstructions": 1.5, "train": 2.5}
    figures = clip_words.key_figures(report)
    assert figures == {"flicker": 3.0, "flicker_real": 2.0, "flicker_reconstructions": 1.5, "flicker_train": 2.5}
    assert clip_words.headline(figures) == "flicker 3 (real clips: 2)"
    first, second = clip_words.lines(report)
    assert (
        "3 clips stand behind a set" in first
        and "3 of samples, 2 of held-out clips, 1.5 of" in second
        and "2.5 of training" in second
    )
    assert clip_words.lines({}) == [] and clip_words.headline({}) == "" and clip_words.key_figures({}) == {}
