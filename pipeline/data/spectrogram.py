"""Log-mel spectrograms of sounds, and sounds of them: arrays in, arrays out. Files are `sounds.py`'s.

A spectrogram is a picture: float32 [C, mels, frames] in dB, the highest band in the first row, time to the right.
Frame k is the samples from k hop - (window - hop) / 2 on, so that N samples have N / hop frames, whose middles are
those of the hops; beyond both ends is silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.value_map import ValueMap
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.schema.sound import Sound

Array = np.ndarray[Any, np.dtype[Any]]
Waves = np.ndarray[Any, np.dtype[np.float32]]  # [n, C, samples]
ROUNDS = 64  # of fast Griffin-Lim
MOMENTUM = 0.99  # Perraudin, Balazs & Søndergaard 2013, section 4
UPDATES = 50  # of the non-negative least squares


def mel(hertz: Array | float) -> Array:
    """m = 2595 log10(1 + f / 700) (O'Shaughnessy 1987)."""
    return np.asarray(2595 * np.log10(1 + np.asarray(hertz, np.float64) / 700))


def hertz(mels: Array | float) -> Array:
    """The inverse of `mel`."""
    return np.asarray(700 * (10 ** (np.asarray(mels, np.float64) / 2595) - 1))


@dataclass(frozen=True)
class Spectrogram:
    """The transform of a data set. rate: samples a second. hop, window: in samples. lowest, highest: Hz, of the bands.
    floor, ceiling: dB that are -1 and 1 to models. frames: of a sound. dtype: of samples' files."""

    rate: int
    frames: int
    mels: int
    hop: int
    window: int
    lowest: float
    highest: float
    floor: float
    ceiling: float
    dtype: str = "int16"

    @classmethod
    def of(cls, sound: Sound) -> Spectrogram:
        highest = sound.rate / 2 if sound.highest is None else sound.highest
        return cls(
            sound.rate, sound.frames, sound.mels, sound.hop, sound.window, sound.lowest, highest, *sound.decibels,
            sound.dtype,
        )  # fmt: skip

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Spectrogram:
        return cls(**found)

    @property
    def samples(self) -> int:
        return self.frames * self.hop

    def values(self, channels: int) -> ValueMap:
        """How spectrograms are mapped to [-1, 1] and shown."""
        low, high = (self.floor,) * channels, (self.ceiling,) * channels
        return ValueMap("float32", low, high, (0,), low[:1], high[:1], "dB")

    @cached_property
    def bank(self) -> Array:
        """Triangles of height 1 over the bins of the window's Fourier transform, at equal distances in mel (Davis &
        Mermelstein 1980): float32 [mels, bins], the highest first. ValueError where a band has no bin."""
        edges = hertz(np.linspace(mel(self.lowest), mel(self.highest), self.mels + 2))
        bins = np.fft.rfftfreq(self.window, 1 / self.rate)
        rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
        bank = np.minimum(rise, fall).clip(0)
        if not bank.any(1).all():
            empty = int((~bank.any(1)).sum())
            raise ValueError(
                f"{empty} of {self.mels} bands are narrower than the {self.rate / self.window:.3g} Hz that a window of "
                f"{self.window} samples tells apart"
            )
        return np.asarray(bank[::-1], np.float32)

    @cached_property
    def _hann(self) -> Array:
        from scipy.signal import get_window

        return np.asarray(get_window("hann", self.window), np.float32)

    def _transform(self, waves: Array) -> Array:
        """Short-time Fourier transform of [..., N]: complex64 [..., frames, bins]; a sine of full scale has about 1."""
        from scipy.fft import rfft

        edge = (self.window - self.hop) // 2
        padded = np.pad(waves, [(0, 0)] * (waves.ndim - 1) + [(edge, edge)])
        cut = np.lib.stride_tricks.sliding_window_view(padded, self.window, axis=-1)[..., :: self.hop, :]
        return np.asarray(rfft(cut * self._hann, axis=-1) * (2 / self._hann.sum()))

    def _inverse(self, spectrum: Array) -> Array:
        """The waves [..., N] whose transform is nearest to [..., frames, bins] in the sense of least squares:
        x = sum_k w y_k / sum_k w^2 (Griffin & Lim 1984, eq. 6)."""
        from scipy.fft import irfft

        frames = irfft(spectrum * (self._hann.sum() / 2), self.window, axis=-1) * self._hann
        edge = (self.window - self.hop) // 2
        made, weight = self._added(frames), self._added(np.broadcast_to(self._hann**2, (self.frames, self.window)))
        inside = slice(edge, edge + self.samples)
        return np.asarray(made[..., inside] / weight[inside])

    def _added(self, frames: Array) -> Array:
        """Frames [..., k, window], each laid `hop` samples after the one before, in one sum."""
        count = self.window // self.hop
        parts = frames.reshape(*frames.shape[:-1], count, self.hop)
        total = np.zeros((*frames.shape[:-2], self.frames + count - 1, self.hop), frames.dtype)
        for number in range(count):
            total[..., number : number + self.frames, :] += parts[..., number, :]
        return total.reshape(*total.shape[:-2], -1)

    def decibels(self, waves: Array) -> Array:
        """float32 [..., mels, frames] of waves [..., samples] in [-1, 1]: L = max(floor, 10 log10(B |X|^2))."""
        power = np.abs(self._transform(np.asarray(waves, np.float32))) ** 2  # [..., frames, bins]
        bands = np.swapaxes(power @ self.bank.T, -1, -2)
        return np.asarray(np.maximum(10 * np.log10(np.maximum(bands, 1e-30)), self.floor), np.float32)

    def waves(self, decibels: Array) -> Array:
        """Sounds float32 [..., samples] whose spectrograms are like [..., mels, frames]: the bins' power by least
        squares without negative numbers, the phases by fast Griffin-Lim (Perraudin et al. 2013), from random ones that
        are always the same."""
        size = np.sqrt(self._power(decibels))  # [..., frames, bins]
        random = np.random.Generator(np.random.Philox(0))
        phase = np.exp(2j * np.pi * random.random(size.shape[-2:])).astype(np.complex64)
        before = inner = size * phase
        for _ in range(ROUNDS):
            # c_n = P_C1(P_C2(t_{n-1})), t_n = c_n + alpha (c_n - c_{n-1}): C2 has these sizes, C1 are transforms
            now = self._transform(self._inverse(size * inner / np.maximum(np.abs(inner), 1e-12)))
            before, inner = now, now + MOMENTUM * (now - before)
        return np.asarray(self._inverse(size * inner / np.maximum(np.abs(inner), 1e-12)), np.float32)

    def _power(self, decibels: Array) -> Array:
        """Power p >= 0 [..., frames, bins] with B p nearest to the bands' power, by Lee & Seung's updates (2001, eq. 4)
        from the pseudo-inverse; bands at the floor or below have none."""
        bands = np.where(decibels > self.floor, 10 ** (np.asarray(decibels, np.float64) / 10), 0)
        target = np.swapaxes(bands, -1, -2) @ self.bank  # b B
        power = np.maximum(np.swapaxes(bands, -1, -2) @ np.linalg.pinv(self.bank).T, 1e-12)
        for _ in range(UPDATES):
            power = power * target / np.maximum(power @ self.bank.T @ self.bank, 1e-30)  # p b B / (p B' B)
        return np.asarray(power, np.float32)


def sounds_of(transform: Spectrogram | None, images: Array) -> Waves:
    """Sounds [n, C, samples] of a model's spectrograms [n, mels, frames, C] in dB. UserError where it has none."""
    if transform is None:
        raise UserError("sound: this model is of other data; ask it for these")
    return np.stack([transform.waves(image.transpose(2, 0, 1)) for image in images])
