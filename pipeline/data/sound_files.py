"""Files of sounds (.wav, .flac, .ogg, .aiff) by libsndfile: what they hold, checked before anything is decoded.

The one place of the package soundfile. Its values are given as they are: whole numbers of up to 16 bits as int16, of
more as int32 (in the upper bits), floats as floats. Read as whole numbers, a float file would be silence.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from pipeline.data.transforms import BadImage

Array = np.ndarray[Any, np.dtype[Any]]
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".aifc")
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "AIFF")  # as libsndfile calls them
MOST_CHANNELS, RATES = 8, (1000, 768_000)
TYPES = {"PCM_U8": "int16", "PCM_S8": "int16", "PCM_16": "int16", "DOUBLE": "float64", "FLOAT": "float32"}
WHOLE = ("PCM_24", "PCM_32")  # others (companded, Vorbis, Opus) are decoded to floats
CHUNKS = 10_000  # of a file, that are looked at
UNKNOWN = 0xFFFFFFFF  # the length of a chunk where a writer did not know it, or four bytes cannot count it
ENDLESS = (1 << 63) - 1  # samples, as libsndfile says of a file that does not
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Held:
    """What a file says of itself. frames: values of each channel. dtype: numpy's name, of values as they are read."""

    path: Path
    frames: int
    rate: int
    channels: int
    dtype: str


def is_sound(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def look(path: Path, longest: float) -> Held:
    """Read a file's header. BadImage for what is no such file, is cut off, or longer than `longest` seconds.

    libsndfile 1.2.2 reads .wav and .aiff files that are cut off as shorter ones, and cut .ogg files as empty ones.
    """
    import soundfile

    try:
        info = soundfile.info(str(path))
    except soundfile.SoundFileError as error:
        raise BadImage("undecodable", _plain(error)) from None
    if info.format not in FORMATS:
        raise BadImage("undecodable", f"{info.format}, which is not read")
    if missing := _cut_off(path):
        raise BadImage("truncated", missing)
    if not RATES[0] <= info.samplerate <= RATES[1]:
        raise BadImage("sample rate", f"{info.samplerate} samples a second; expected {RATES[0]} to {RATES[1]}")
    if not 1 <= info.channels <= MOST_CHANNELS:
        raise BadImage("channels", f"{info.channels} channels; {MOST_CHANNELS} at most")
    if info.frames < 1:
        raise BadImage("empty", "holds no sound")
    if info.frames == ENDLESS:  # of a FLAC file that went through a pipe
        raise BadImage("undecodable", "its header does not say how long it is: write it to a file, not to a pipe")
    if info.frames > longest * info.samplerate:
        seconds = info.frames / info.samplerate
        raise BadImage("too long", f"{seconds:.6g} s; {longest:g} at most (`data.source.longest`)")
    whole = "int32" if info.subtype in WHOLE else "float32"
    return Held(path, info.frames, info.samplerate, info.channels, TYPES.get(info.subtype, whole))


def read(held: Held, start: int, count: int) -> Array:
    """Values [n, C] from `start` on, `count` or as many as there are. BadImage where they cannot be decoded."""
    import soundfile

    try:
        with soundfile.SoundFile(str(held.path)) as file:
            if (file.frames, file.samplerate, file.channels) != (held.frames, held.rate, held.channels):
                raise BadImage("undecodable", "another file than before")
            file.seek(start)
            values: Array = file.read(count, dtype=held.dtype, always_2d=True)
    except soundfile.SoundFileError as error:
        raise BadImage("undecodable", _plain(error)) from None
    if len(values) < (wanted := min(count, held.frames - start)):
        raise BadImage("truncated", f"{len(values)} of {wanted} values a channel can be decoded")
    return values


def _plain(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip()


def _cut_off(path: Path) -> str | None:
    """What of a file is missing at its end, in words; None where all is there, or where its decoder says so (FLAC).
    BadImage for an Ogg file with a damaged page, which libogg passes over: what is left is another sound."""
    size = os.path.getsize(path)  # noqa: PTH202
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
            order: Literal["big", "little"] = "little" if head[:4] in (b"RIFF", b"RF64") else "big"
            at, long = 12, 0
            for _ in range(CHUNKS):  # chunks: four letters, length, content, a byte to fill up (RIFF and EA IFF 85)
                file.seek(at)
                if len(chunk := file.read(8)) < 8:
                    break
                length = int.from_bytes(chunk[4:8], order)
                if chunk[:4] == b"ds64":  # of RF64, whose samples may be more than four bytes can count (EBU 3306)
                    long = int.from_bytes(file.read(16)[8:], order)
                if chunk[:4] == b"data" and length == UNKNOWN:
                    length = long or length
                if chunk[:4] in (b"data", b"SSND") and length not in (0, UNKNOWN) and at + 8 + length > size:
                    return f"its samples should have {length} bytes, and {size - at - 8} are there"
                at += 8 + length + length % 2
        elif head[:4] == b"OggS":
            file.seek(0)
            return _pages(file)
    return None


def _pages(file: BinaryIO) -> str | None:
    """`_cut_off` of the pages of an Ogg file (RFC 3533, section 6)."""
    last = False
    while (head := file.read(27))[:4] == b"OggS" and len(head) == 27:
        if last and head[5] & 2:
            raise BadImage("undecodable", "several sounds one behind the other, of which the first one would be read")
        lengths = file.read(head[26])
        body = file.read(sum(lengths))
        if len(lengths) < head[26] or len(body) < sum(lengths):
            return "its last page is not whole"
        if _checksum(head[:22] + bytes(4) + head[26:] + lengths + body) != int.from_bytes(head[22:26], "little"):
            raise BadImage("undecodable", "a page has a wrong checksum")
        last = bool(head[5] & 4)
    if last:
        return None
    if len(head) == 27:
        raise BadImage("undecodable", "a page is damaged")
    return "its last page is missing"


def _checksum(page: bytes) -> int:
    """Ogg's, which has the polynomial of zlib's, but the highest bit of a byte first, and begins and ends with 0."""
    found = zlib.crc32(page.translate(MIRRORED), UNKNOWN) ^ UNKNOWN
    return int(f"{found:032b}"[::-1], 2)
