"""Bombs: files of some kilobytes that would become more than their headers say, with limits that make them harmless."""

from __future__ import annotations

import gzip
import importlib.util
import lzma
import struct
import zlib

import numpy as np
import pytest
import tifffile
from tifffile import _imagecodecs

from pipeline.data import bounded
from tests.unit.pipeline.data.rasters import dicom, nifti, noise, read, reason

ZEROS = bytes(1 << 21)


@pytest.fixture(autouse=True)
def little(monkeypatch):
    monkeypatch.setattr(bounded, "HARMLESS", 1 << 16)
    monkeypatch.setattr(bounded, "CHUNK", 1 << 12)
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imagecodecs" else there(name))
    monkeypatch.setattr(tifffile.tifffile, "imagecodecs", _imagecodecs)  # what tifffile has in place of it
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", tifffile.tifffile.CompressionCodec(encode=False))


def tiff(path, compression, segment=None, **how):
    """A TIFF of 16x16 values whose one strip is `segment`."""
    tifffile.imwrite(path, noise(16, 16), compression=compression, metadata=None, **how)
    if segment is not None:
        end = path.stat().st_size
        with tifffile.TiffFile(path, mode="r+b") as file:
            page = file.pages.first
            page.tags["StripOffsets"].overwrite(end)
            page.tags["StripByteCounts"].overwrite(len(segment))
        with open(path, "ab") as file:
            file.write(segment)


@pytest.mark.parametrize(("compression", "pack"), [("zlib", zlib.compress), ("lzma", lzma.compress)])
def test_a_strip_that_is_more_than_its_sides_is_never_unpacked(tmp_path, compression, pack, monkeypatch):
    tiff(tmp_path / "a.tif", compression)
    assert read(tmp_path)[0].shape == (1, 16, 16)
    tiff(tmp_path / "a.tif", compression, pack(noise(16, 16).tobytes() + bytes(1000)))  # padded, as some writers do
    assert read(tmp_path)[0].shape == (1, 16, 16)
    tiff(tmp_path / "a.tif", compression, pack(ZEROS))
    monkeypatch.setattr(tifffile, "imread", lambda *_, **__: pytest.fail("unpacked"))
    assert reason(tmp_path).startswith("oversized: a strip or tile of ")


def test_bytes_are_counted_and_forgotten():
    for pack, over in ((zlib.compress, bounded.inflates_over), (lzma.compress, bounded.unpacks_over)):
        assert over(pack(ZEROS), len(ZEROS) - 1) and not over(pack(ZEROS), len(ZEROS))
        assert not over(pack(ZEROS)[:-9], len(ZEROS)) and not over(b"", 0)  # cut off: what reads it says so


def deflated(path, pixels):
    """A DICOM file of the deflated transfer syntax."""
    import pydicom

    file = dicom(path, pixels)
    file.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    file.save_as(path, enforce_file_format=True)


def test_a_deflated_dicom_is_unpacked_up_to_the_limit_alone(tmp_path, monkeypatch):
    pixels = noise(16, 16)
    deflated(tmp_path / "a.dcm", pixels)
    np.testing.assert_array_equal(read(tmp_path, max_pixels=1000)[0][0], pixels)
    deflated(tmp_path / "a.dcm", np.zeros((64, 256, 256), np.uint16))
    assert (tmp_path / "a.dcm").stat().st_size < 20_000
    monkeypatch.setattr("pydicom.dcmread", lambda *_, **__: pytest.fail("unpacked"))
    said = reason(tmp_path, max_pixels=1000)
    assert said == "oversized: a deflated file that becomes over 73,536 bytes (8 by data.max_pixels)"


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_a_nifti_with_a_header_of_megabytes_is_not_read(tmp_path, ending, monkeypatch):
    path, opened = tmp_path / f"a.{ending}", gzip.open if ending.endswith("gz") else open
    nifti(path, noise(4, 5, 6, dtype="int16"))
    assert len(read(tmp_path, dtype="int16")) == 6
    with opened(path, "rb") as file:
        content = bytearray(file.read())
    for start in (1e6, float("nan"), -1.0):
        content[108:112], content[348:352] = struct.pack("<f", start), b"\1\0\0\0"
        hostile = bytes(content[:352]) + struct.pack("<ii", 1 << 20, 0) + ZEROS
        with opened(path, "wb") as file:
            file.write(hostile)
        assert reason(tmp_path, dtype="int16").startswith("oversized: a header of ")
    content[344:348] = b"ni1\0"  # the half of a pair: its extensions have no end
    with opened(path, "wb") as file:
        file.write(content)
    assert reason(tmp_path, dtype="int16") == "undecodable: no NIfTI file of one part"


def test_a_volume_of_zeros_is_held_against_its_sides(tmp_path):
    nifti(tmp_path / "a.nii.gz", np.zeros((64, 64, 64), np.int16))
    assert reason(tmp_path, dtype="int16", max_pixels=1000).startswith("oversized: 64x64, 262,144 values")


def test_zstd_that_this_python_cannot_read_names_the_extra(tmp_path, monkeypatch):
    tiff(tmp_path / "a.tif", None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        file.pages.first.tags["Compression"].overwrite(50000)
    monkeypatch.setattr(
        tifffile, "imread", lambda *_, **__: (_ for _ in ()).throw(ModuleNotFoundError("No module named 'compression'"))
    )
    said = "undecodable: a TIFF of this compression needs imagecodecs: install the extra `geo`"
    assert reason(tmp_path) == said
