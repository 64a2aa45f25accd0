"""Sounds as shards hold them (.wav, no value changed), and as models see them: scaled, mixed, resampled, as long as
`data.sound` says, then as spectrograms (`spectrogram.py`)."""

from __future__ import annotations

import io
import math
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.spectrogram import Spectrogram
from pipeline.data.transforms import BadImage, Bands

if TYPE_CHECKING:
    from pipeline.schema.data import Data
    from pipeline.schema.sound import Sound

Array = np.ndarray[Any, np.dtype[Any]]
QUIET = 0.1  # root mean square that `loudness: rms` brings a sound to: -20 dB of full scale
MOST_STEPS = 20_000  # of a resampler's fraction: more come of rates that no device has


class Heard(Bands):
    """A sound as it is kept, with the spectrogram [C, mels, frames] that models see. wav: the member's bytes.
    milliseconds, rate: of the sound itself."""

    def __init__(self, wav: bytes, values: Array, milliseconds: int, rate: int) -> None:
        super().__init__(values)
        self.wav, self.milliseconds, self.rate = wav, milliseconds, rate


def to_wav(values: Array, rate: int) -> bytes:
    """The .wav file of samples [n, C]: the same bytes each time, unlike libsndfile's, which hold the time."""
    from scipy.io import wavfile

    buffer = io.BytesIO()
    wavfile.write(buffer, rate, values)
    return buffer.getvalue()


def from_wav(content: bytes) -> tuple[Array, int]:
    """Samples [n, C] and rate of what `to_wav` wrote. BadImage for others."""
    from scipy.io import wavfile

    try:
        rate, values = wavfile.read(io.BytesIO(content))
    except (ValueError, EOFError, OSError, struct.error) as error:
        raise BadImage("undecodable", f"no .wav member ({type(error).__name__})") from None
    return (values[:, None] if values.ndim == 1 else values), int(rate)


def heard(values: Array, rate: int, sound: Sound, channels: int) -> Array:
    """float32 [channels, samples] of samples [n, C] of any type and rate: full scale is 1, stereo becomes mono as the
    mean, other counts of channels the first ones or one repeated; resampled, cut or followed by silence, as loud as
    `sound.loudness` says. BadImage for a rate that has no simple ratio to the wanted one."""
    x = np.asarray(values, np.float64).T  # [C, n]
    x = x / -float(np.iinfo(values.dtype).min) if values.dtype.kind == "i" else x
    x = x.mean(0, keepdims=True) if channels == 1 else x[:channels]
    x = np.broadcast_to(x, (channels, x.shape[1])) if len(x) < channels else x
    common = math.gcd(rate, sound.rate)
    up, down = sound.rate // common, rate // common
    if max(up, down) > MOST_STEPS:
        raise BadImage("sample rate", f"{rate} samples a second have no simple ratio to {sound.rate}")
    if up != down:
        x = _resampled(x, up, down)
    count = sound.frames * sound.hop
    x = np.pad(x[:, :count], [(0, 0), (0, max(0, count - x.shape[1]))])
    scale = {"as_is": 1.0, "peak": np.abs(x).max(), "rms": np.sqrt((x * x).mean()) / QUIET}[sound.loudness]
    return np.asarray(x / max(scale, 1e-9), np.float32)


def _resampled(x: Array, up: int, down: int) -> Array:
    """[C, n] at up / down of its rate: scipy's polyphase filter (a Kaiser window, 20 max(up, down) + 1 taps)."""
    from scipy.signal import resample_poly

    return np.asarray(resample_poly(x, up, down, axis=1, window=_taps(up, down)))


@lru_cache(maxsize=16)
def _taps(up: int, down: int) -> Array:
    """The filter that `resample_poly` designs anew in each call."""
    from scipy.signal import firwin

    most = max(up, down)
    return np.asarray(firwin(20 * most + 1, 1 / most, window=("kaiser", 5.0)))


def spectrogram(wav: bytes, sound: Sound, channels: int) -> Array:
    """float32 [channels, mels, frames] in dB of a member of a shard. Raises BadImage."""
    values, rate = from_wav(wav)
    with np.errstate(over="ignore", invalid="ignore"):
        found = transform_of(sound).decibels(heard(values, rate, sound, channels))
    if not np.isfinite(found).all():  # the square of a float of 1e20 has no float32
        raise BadImage("not finite", f"its spectrogram, of values of up to {np.abs(values).max():.3g}")
    return found


@lru_cache(maxsize=4)
def transform_of(sound: Sound) -> Spectrogram:
    """The transform, with its bank of filters, made once."""
    return Spectrogram.of(sound)


def load(wav: bytes, data: Data) -> Array:
    """What models see of a member, as `transforms.load_with_margin` gives it of images."""
    assert data.sound is not None
    return spectrogram(wav, data.sound, data.channels)
