"""What is measured of sounds besides what is measured of their spectrograms as pictures (`scores.py`): distances in dB.

The log-spectral distance is the root mean square over bands of the difference in dB, of each frame; a mean over frames
and sounds (Gray & Markel 1976, of the bands of a log-mel spectrogram). Frames in which both are silent count, with 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.generate.sound_samples import wav_of

if TYPE_CHECKING:
    from pipeline.generate.generator import Generator

Array = np.ndarray[Any, np.dtype[Any]]
INVERTED = 32  # held-out sounds that go through the transform and back
HEARD = 16  # samples that are kept as files


def distance(images: Array, others: Array) -> float:
    """Log-spectral distance in dB of spectrograms [n, mels, frames, C]."""
    frames = np.sqrt(((images.astype(np.float64) - others) ** 2).mean(1))  # [n, frames, C]
    return float(frames.mean())


def measure(generator: Generator, held_out: Array, reconstructions: Array) -> dict[str, float]:
    """In dB, of held-out spectrograms in the data's range: of reconstructions, and of what becomes of a spectrogram
    that is made a sound and a spectrogram again (`inversion`), of reconstructions as well (`heard`)."""
    transform = generator.sound
    assert transform is not None
    real = held_out.clip(transform.floor, transform.ceiling)

    def back(images: Array) -> Array:
        waves = generator.waves(images[:INVERTED])  # [n, C, samples]
        made = transform.decibels(waves).clip(transform.floor, transform.ceiling)
        return made.transpose(0, 2, 3, 1)  # [n, C, mels, frames] -> [n, mels, frames, C]

    return {
        "log_spectral": distance(real, reconstructions),
        "inversion": distance(real[:INVERTED], back(real)),
        "heard": distance(real[:INVERTED], back(reconstructions)),
    }


def files(generator: Generator, images: Array) -> dict[str, bytes]:
    """The first samples as .wav files, by name."""
    waves = generator.waves(images[:HEARD])
    return {f"sounds/{number:02d}.wav": wav_of(wave, generator) for number, wave in enumerate(waves)}


def key_figures(measured: dict[str, float]) -> dict[str, float]:
    return {f"{name}_db": value for name, value in measured.items()}


def lines(measured: dict[str, float]) -> list[str]:
    return (
        [
            f"log-spectral distance of reconstructed held-out sounds: {measured['log_spectral']:.2f} dB; once they are "
            f"sounds {measured['heard']:.2f} dB (of real spectrograms made sounds: {measured['inversion']:.2f} dB)"
        ]
        if measured
        else []
    )
