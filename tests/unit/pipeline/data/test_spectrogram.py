"""Log-mel spectrograms: where a tone lies and how high, that they are of the samples they say, and the way back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.spectrogram import Spectrogram, hertz, mel
from pipeline.schema.sound import Sound
from tests.unit.pipeline.data.sounds import tone

SOUND = Sound(rate=8000, seconds=0.512, mels=32, hop=128, window=512)
TRANSFORM = Spectrogram.of(SOUND)


def distance(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(((x - y) ** 2).mean(-2)).mean())


def test_mel_is_what_the_equation_says() -> None:
    assert np.isclose(mel(1000.0), 999.99, atol=0.05) and np.isclose(hertz(mel(440.0)), 440)


@pytest.mark.parametrize("pitch", [300.0, 1000.0, 3000.0])
def test_a_sine_of_full_scale_is_near_0_db_in_its_band(pitch: float) -> None:
    t = np.arange(TRANSFORM.samples) / 8000
    found = TRANSFORM.decibels(np.sin(2 * np.pi * pitch * t))
    assert found.shape == (32, 32) and found.dtype == np.float32
    middles = hertz(np.linspace(mel(20.0), mel(4000.0), 34))[1:-1][::-1]  # the highest band first
    row = int(found[:, 16].argmax())
    assert abs(np.log2(middles[row] / pitch)) < 0.2 and -4 < found[row, 16] < 3


def test_frames_are_the_short_time_transform_of_scipy() -> None:
    from scipy.signal import ShortTimeFFT, get_window

    wave = np.random.default_rng(0).standard_normal(TRANSFORM.samples)
    ours = TRANSFORM._transform(wave)
    window = get_window("hann", 512)
    # whose slice p has its middle at sample p hop, the first being p_min: ours lie half a hop further on
    scipys = ShortTimeFFT(window, 128, 8000, fft_mode="onesided")
    other, start = scipys.stft(np.pad(wave, (448, 512))), (448 + 64) // 128 - scipys.p_min
    assert np.allclose(np.abs(ours), np.abs(other[:, start : start + 32].T) * 2 / window.sum(), atol=1e-5)


def test_the_inverse_of_the_transform_is_exact() -> None:
    waves = np.random.default_rng(0).standard_normal((2, TRANSFORM.samples)).astype(np.float32)
    assert np.abs(TRANSFORM._inverse(TRANSFORM._transform(waves)) - waves).max() < 1e-4


def test_tones_and_noise_come_back_from_their_spectrograms() -> None:
    usual = Spectrogram.of(Sound())
    noise = 0.1 * np.random.default_rng(0).standard_normal(usual.samples)
    one, other = (tone(pitch, usual.rate, 1.024) for pitch in (440, 1500))
    for wave, most in ((one, 2.0), (one + other, 3.0), (noise, 2.0)):
        there = usual.decibels(wave)
        back = usual.waves(there)
        assert back.shape == wave.shape and back.dtype == np.float32
        assert distance(usual.decibels(back), there) < most
        assert distance(usual.decibels(np.zeros(usual.samples)), there) > 5 * most  # the figure says something
    assert np.array_equal(usual.waves(there), back)  # the same each time


def test_a_tone_that_comes_back_has_its_pitch() -> None:
    back = TRANSFORM.waves(TRANSFORM.decibels(tone(440)))
    spectrum = np.abs(np.fft.rfft(back * np.hanning(len(back))))
    assert abs(np.fft.rfftfreq(len(back), 1 / 8000)[spectrum.argmax()] - 440) < 25


def test_silence_is_the_floor_and_comes_back_as_silence() -> None:
    quiet = TRANSFORM.decibels(np.zeros((2, TRANSFORM.samples)))
    assert quiet.shape == (2, 32, 32) and np.allclose(quiet, -80, atol=1e-4)
    assert np.abs(TRANSFORM.waves(quiet)).max() < 1e-4


def test_bands_that_no_window_tells_apart() -> None:
    with pytest.raises(ValueError, match=r"bands are narrower than the 15\.6 Hz"):
        replace(TRANSFORM, mels=256).bank  # noqa: B018


def test_values_of_the_models() -> None:
    values = TRANSFORM.values(2)
    x = values.floats(np.array([[[-100.0, -80, -35, 10, 20]]] * 2, np.float32))
    assert np.allclose(x[0, 0], [-1, -1, 0, 1, 1])
    assert values.shown(np.full((1, 1, 2), 10, np.float32)).tolist() == [[[255]]]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"seconds": 0.5}, "0.496 are 31"),
        ({"window": 500}, "window"),
        ({"lowest": 4000.0}, "half the `rate`"),
        ({"highest": 5000.0}, "half the `rate`"),
        ({"decibels": (10.0, -80.0)}, "lowest power"),
    ],
)
def test_what_no_spectrogram_can_be_of(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sound(**{"rate": 8000, "seconds": 0.512, "hop": 128, "window": 512, **options})
