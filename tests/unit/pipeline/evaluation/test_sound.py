"""Distances of sounds in dB."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.data.spectrogram import Spectrogram
from pipeline.evaluation import sound_scores
from pipeline.generate.generator import Generator
from pipeline.schema.sound import Sound

TRANSFORM = Spectrogram.of(Sound(rate=8000, seconds=0.256, mels=16, hop=64, window=256))


def test_the_distance_is_the_mean_over_frames_of_the_root_mean_square_over_bands() -> None:
    x = np.zeros((1, 2, 2, 1), np.float32)
    y = np.array([[[[3.0], [0]], [[4], [0]]]], np.float32)  # [n, mels, frames, C]
    assert np.isclose(sound_scores.distance(x, y), np.sqrt(12.5) / 2)
    assert sound_scores.distance(y, y) == 0


def test_what_is_measured() -> None:
    noise = np.random.default_rng(0).standard_normal((3, 1, TRANSFORM.samples))
    real = TRANSFORM.decibels(0.1 * noise).transpose(0, 2, 3, 1)
    model: Any = SimpleNamespace(sound=TRANSFORM)
    model.waves = lambda images: Generator.waves(model, images)
    found = sound_scores.measure(model, real, real + 2)
    assert np.isclose(found["log_spectral"], 2, atol=1e-4)
    assert 0 < found["inversion"] < 2.5 and found["inversion"] < found["heard"] < 5
    assert "2.00 dB" in sound_scores.lines(found)[0] and sound_scores.key_figures(found)["log_spectral_db"] > 1.9
