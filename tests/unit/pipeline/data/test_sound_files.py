"""What comes out of files of sounds: their own values, bit for bit; what is wrong with a file has a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.data import sound_files
from pipeline.data.transforms import BadImage
from tests.unit.pipeline.data.sounds import tone, write

WHOLE = (np.random.default_rng(0).integers(-128, 128, 4096)).astype(np.int64)  # 8-bit values


@pytest.mark.parametrize(
    "name, subtype, shift, dtype",
    [
        ("a.wav", "PCM_U8", 8, "int16"),
        ("a.wav", "PCM_16", 8, "int16"),
        ("a.wav", "PCM_24", 24, "int32"),
        ("a.wav", "PCM_32", 24, "int32"),
        ("a.flac", "PCM_16", 8, "int16"),
        ("a.flac", "PCM_24", 24, "int32"),
        ("a.aiff", "PCM_S8", 8, "int16"),
        ("a.aiff", "PCM_24", 24, "int32"),
    ],
)
def test_whole_numbers_come_back(tmp_path: Path, name: str, subtype: str, shift: int, dtype: str) -> None:
    values = (WHOLE << shift).astype(dtype)
    soundfile.write(tmp_path / name, values, 8000, subtype=subtype)
    held = sound_files.look(tmp_path / name, 600)
    assert (held.frames, held.rate, held.channels, held.dtype) == (4096, 8000, 1, dtype)
    assert np.array_equal(sound_files.read(held, 0, 4096)[:, 0], values)
    assert np.array_equal(sound_files.read(held, 100, 50)[:, 0], values[100:150])


@pytest.mark.parametrize("name, subtype, dtype", [("a.wav", "FLOAT", "float32"), ("a.aiff", "DOUBLE", "float64")])
def test_floats_are_read_as_floats(tmp_path: Path, name: str, subtype: str, dtype: str) -> None:
    values = (1e-3 * tone()).astype(dtype)  # as whole numbers: next to silence
    values[7] = 1.5
    held = sound_files.look(write(tmp_path / name, values, subtype=subtype), 600)
    assert held.dtype == dtype and np.array_equal(sound_files.read(held, 0, len(values))[:, 0], values)


def test_vorbis_is_near_and_stereo_stays_apart(tmp_path: Path) -> None:
    two = np.stack([tone(440), tone(880)], 1)
    held = sound_files.look(write(tmp_path / "a.ogg", two), 600)
    values = sound_files.read(held, 0, 10_000)
    assert held.channels == 2 and values.shape == two.shape and np.abs(values - two).max() < 0.1


def reason(path: Path, longest: float = 600, decode: bool = True) -> str:
    with pytest.raises(BadImage) as caught:
        held = sound_files.look(path, longest)
        if decode:
            sound_files.read(held, 0, held.frames)
    return caught.value.reason


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.flac", "a.ogg"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_is_cut_off(tmp_path: Path, name: str, share: float) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(40_000)
    content = write(tmp_path / name, noise).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    assert reason(tmp_path / name) in (("truncated",) if name != "a.flac" else ("truncated", "undecodable"))


def test_long_files_of_broadcasters_are_cut_off_as_well(tmp_path: Path) -> None:
    content = write(tmp_path / "a.wav", tone(), format="RF64", subtype="PCM_16").read_bytes()
    assert sound_files.look(tmp_path / "a.wav", 600).frames == 4096
    (tmp_path / "a.wav").write_bytes(content[:4000])
    assert reason(tmp_path / "a.wav") == "truncated"


def test_a_damaged_page_in_the_middle_is_no_shorter_sound(tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(60_000)
    path = write(tmp_path / "a.ogg", noise, rate=48_000)
    content = bytearray(path.read_bytes())
    path.write_bytes(content * 2)
    assert reason(path, decode=False) == "undecodable"
    path.write_bytes(content + b"TAG" + bytes(125))  # as some taggers leave files
    assert sound_files.look(path, 600).frames == 60_000
    content[content.rindex(b"OggS") - 100] ^= 1
    path.write_bytes(content)
    assert reason(path, decode=False) == "undecodable"


def test_a_flac_file_that_does_not_say_how_long_it_is(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0  # 36 bits of the STREAMINFO (RFC 9639, 8.2)
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    assert reason(tmp_path / "a.flac", decode=False) == "undecodable"


def test_what_is_no_sound_of_ours(tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"<html>" * 50)):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(content)
        assert reason(path) == "undecodable"
    assert reason(write(tmp_path / "long.wav"), longest=0.5, decode=False) == "too long"
    assert reason(write(tmp_path / "many.wav", np.zeros((100, 9)))) == "channels"
    assert reason(write(tmp_path / "slow.wav", tone(), rate=500)) == "sample rate"
    assert reason(write(tmp_path / "none.wav", np.zeros(0))) == "empty"
    assert reason(write(tmp_path / "a.wav", format="AU", subtype="PCM_16")) == "undecodable"


def test_a_length_that_a_header_only_claims_costs_no_memory(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "a.wav").read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = (0x7FFFFFF0).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(bytes(content))
    assert reason(tmp_path / "a.wav") == "truncated"
