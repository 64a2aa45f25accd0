"""Files of sounds that a model made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.data.spectrogram import Spectrogram
from pipeline.data.waves import from_wav
from pipeline.errors import UserError
from pipeline.generate import sound_samples
from pipeline.generate.generator import Generator
from pipeline.generate.samples import Earlier
from pipeline.schema.sound import Sound


def model(dtype: str) -> Any:
    return SimpleNamespace(sound=Spectrogram.of(Sound(dtype=dtype)), classes=["a"], shapes=[(64, 64)])


def test_sixteen_bits_and_floats() -> None:
    wave = np.array([[0.0, 0.5, -1.0], [0.25, 0, 1]], np.float32)
    values, rate = from_wav(sound_samples.wav_of(wave, model("int16")))
    assert rate == 16_000 and values.dtype == np.int16
    assert values.tolist() == [[0, 8192], [16384, 0], [-32767, 32767]]
    values, _ = from_wav(sound_samples.wav_of(wave, model("float32")))
    assert values.dtype == np.float32 and np.array_equal(values.T, wave)


def test_what_would_be_cut_is_made_quieter() -> None:
    loud = np.array([[0.5, -2.0]], np.float32)
    for dtype, expected in (("int16", [8192, -32767]), ("float32", [0.25, -1])):
        assert from_wav(sound_samples.wav_of(loud, model(dtype)))[0][:, 0].tolist() == expected


def test_what_they_may_not_lie_beside(tmp_path: Path) -> None:
    def check(file: str, names: list[str]) -> None:
        info = {"class_names": names, "images": [{"file": file, "index": 0}]}
        sound_samples.check(tmp_path, Earlier(info, 1), model("int16"))

    with pytest.raises(UserError, match="other classes"):
        check("000000.wav", ["b"])
    with pytest.raises(UserError, match="other samples"):
        check("000000.txt", ["a"])


def test_a_model_of_images_makes_no_sounds() -> None:
    images = Generator({}, None, None, None, None)  # type: ignore[arg-type]
    assert images.sound is None
    with pytest.raises(UserError, match="of other data"):
        images.waves(np.zeros((1, 8, 8, 1)))
