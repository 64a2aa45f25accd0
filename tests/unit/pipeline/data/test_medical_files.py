"""The table of inputs with their right values: DICOM and NIfTI."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from pipeline.data import sources
from tests.unit.pipeline.data.rasters import data, dicom, nifti, noise, read, reason

pydicom = pytest.importorskip("pydicom", reason="needs the extra `medical`")
pytest.importorskip("nibabel", reason="needs the extra `medical`")


def test_hounsfield_units_of_slope_and_intercept(tmp_path):
    stored = noise(16, 20, dtype="int16") // 16
    dicom(
        tmp_path / "a.dcm", stored, RescaleSlope="1", RescaleIntercept="-1024", PhotometricInterpretation="MONOCHROME1"
    )
    np.testing.assert_array_equal(read(tmp_path, dtype="int16")[0][0], stored - 1024)  # a unit is not turned around
    dicom(tmp_path / "a.dcm", stored, RescaleSlope="0.5", RescaleIntercept="3")
    np.testing.assert_array_equal(read(tmp_path, dtype="float32")[0][0], (stored * 0.5 + 3).astype(np.float32))
    np.testing.assert_array_equal(read(tmp_path, dtype="int16", rescale=False)[0][0], stored)


def test_monochrome1_without_unit_is_turned_around_within_the_bits_that_are_stored(tmp_path):
    stored = noise(16, 20) >> 4
    dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read(tmp_path)[0][0], 4095 - stored)
    signed = noise(16, 20, dtype="int16")
    dicom(tmp_path / "a.dcm", signed, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read(tmp_path, dtype="int16")[0][0], -1 - signed.astype(int))


def test_frames_are_images_each_with_its_own_slope(tmp_path):
    stored = noise(3, 16, 20, dtype="int16") // 16
    groups = []
    for slope in (1, 2, 3):
        group, place = pydicom.Dataset(), pydicom.Dataset()
        place.RescaleSlope, place.RescaleIntercept = str(slope), "5"
        group.PixelValueTransformationSequence = [place]
        groups.append(group)
    dicom(tmp_path / "a.dcm", stored, PerFrameFunctionalGroupsSequence=groups)
    expected = [stored[i : i + 1] * slope + 5 for i, slope in enumerate((1, 2, 3))]
    np.testing.assert_array_equal(read(tmp_path, dtype="int16"), expected)


def test_colour_is_rgb_whatever_the_attribute_says(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]] * 4, np.uint8)
    dicom(tmp_path / "a.dcm", colours)
    np.testing.assert_array_equal(read(tmp_path, dtype="uint8", channels=3)[0], colours.transpose(2, 0, 1))
    from pydicom.pixels import convert_color_space

    stored = convert_color_space(colours, "RGB", "YBR_FULL")
    dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation="YBR_FULL")
    found = read(tmp_path, dtype="uint8", channels=3)[0].transpose(1, 2, 0).astype(int)
    assert abs(found - colours).max() <= 2  # 8 bits of YBR: no conversion twice, and none left out
    dicom(tmp_path / "a.dcm", colours[..., 0], PhotometricInterpretation="PALETTE COLOR")
    assert reason(tmp_path, dtype="uint8").startswith("undecodable: a palette")


def test_what_is_no_image_names_no_value_of_the_file(tmp_path):
    dicom(tmp_path / "a.dcm", None, PatientName="Doe^Jane")
    assert reason(tmp_path) == "no pixels: a DICOM file without an image"
    file = dicom(tmp_path / "a.dcm", noise(16, 20), PatientName="Doe^Jane")
    (tmp_path / "a.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:-100])
    assert reason(tmp_path).startswith("undecodable: its pixels cannot be read")
    del file.PixelData
    file.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert reason(tmp_path) == "no pixels: a DICOM file without an image"
    (tmp_path / "a.dcm").write_bytes(b"Doe^Jane" * 30)
    assert reason(tmp_path) == "undecodable: no DICOM file (InvalidDicomError)"


def test_more_images_than_a_file_can_hold_are_not_listed(tmp_path):
    dicom(tmp_path / "a.dcm", noise(16, 20), NumberOfFrames=9_000_000)
    assert reason(tmp_path) == "truncated: 9,000,000 frames are told of, more than the file can hold"
    dicom(tmp_path / "a.dcm", noise(16, 20), NumberOfFrames=2_000_000_000)
    assert reason(tmp_path).startswith("oversized: 20x16, 640,000,000,000 values")
    (tmp_path / "a.dcm").unlink()
    nifti(tmp_path / "a.nii", noise(16, 16, 2, dtype="int16"))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[40:56] = np.array([3, 16, 16, 32767, 1, 1, 1, 1], "<i2").tobytes()  # dim of the header
    (tmp_path / "a.nii").write_bytes(content)
    assert reason(tmp_path) == "truncated: a volume of [16, 16, 32767], more than the file can hold"
    (tmp_path / "a.nii").unlink()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    assert reason(tmp_path).startswith("truncated: a volume of")


def test_beside_files_of_patients_other_files_are_not_named_either(tmp_path):
    (tmp_path / "Doe_Jane").mkdir()
    dicom(tmp_path / "Doe_Jane" / "a.dcm", noise(16, 20), PatientID="1")
    np.save(tmp_path / "Doe_Jane" / "b.npy", noise(2, 16, 20))
    rows = sources.open_listing(data(tmp_path)).rows
    assert len(rows) == 3 and not any("Doe" in f"{row.key}{row.attributes}{row.label}" for row in rows)
    assert len({row.attributes["subject"] for row in rows}) == 2  # nobody says whose the other file is


def test_files_of_a_subject_share_a_pseudonym_that_stands_in_no_name(tmp_path):
    for number, (patient, slices) in enumerate((("7", 2), ("8", 1))):
        folder = tmp_path / f"Doe_{patient}"
        folder.mkdir()
        for place in range(slices):
            dicom(folder / f"IM{place}", noise(16, 20), PatientID=patient)  # no suffix: known by its mark
        nifti(folder / f"sub-0{number}_T1w.nii", noise(16, 18, 3, dtype="int16"))
        nifti(folder / f"sub-0{number}_T2w.nii", noise(16, 18, 3, dtype="int16"))
    rows = sources.open_listing(data(tmp_path)).rows
    subjects = [row.attributes["subject"] for row in rows]
    assert sorted(subjects.count(one) for one in set(subjects)) == [1, 2, 6, 6]
    assert not any(
        word in f"{row.key}{row.attributes}{row.label}" for row in rows for word in ("Doe", "sub-", "IM", "T1")
    )


@pytest.mark.parametrize(
    ("slope", "inter", "expected"),
    [(0, 0, (1, 0)), (np.nan, np.nan, (1, 0)), (0, 7, (1, 0)), (1, -1024, (1, -1024)), (0.5, 3, (0.5, 3))],
)
def test_nifti_scaling(tmp_path, slope, inter, expected):
    voxels = noise(6, 8, 3, dtype="int16") // 16
    nifti(tmp_path / "a.nii", voxels, slope=slope, inter=inter)
    found = read(tmp_path, dtype="float32")
    scaled = voxels.astype(np.float64) * expected[0] + expected[1]
    np.testing.assert_array_equal(found[1][0], scaled[::-1, ::-1, 1].T.astype(np.float32))


@pytest.mark.parametrize("at", [-6, 0.5, None], ids=["checksum", "middle", "end"])
def test_a_packed_volume_is_held_against_its_checksum(tmp_path, at):
    nifti(tmp_path / "a.nii.gz", noise(16, 16, 3, dtype="int16"))
    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    if at is None:
        del content[-4:]
    else:
        content[at if at < 0 else int(at * len(content))] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert reason(tmp_path, dtype="int16") == "undecodable: the .gz file is damaged or cut off: copy it again"


def test_a_slope_of_nothing_and_a_compression_that_nobody_knows(tmp_path):
    stored = noise(16, 20, dtype="int16")
    file = dicom(tmp_path / "a.dcm", stored, RescaleSlope="0", RescaleIntercept="0")
    assert reason(tmp_path, dtype="int16").startswith("undecodable: a slope of 0")
    np.testing.assert_array_equal(read(tmp_path, dtype="int16", rescale=False)[0][0], stored)
    file.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless
    file.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f"])
    file["PixelData"].is_undefined_length = True
    file.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    if not pydicom.pixels.get_decoder(pydicom.uid.HTJ2KLossless).is_available:
        assert "compressed as High-Throughput JPEG 2000" in reason(tmp_path)


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"])
@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_values_that_an_archive_compressed_without_loss_are_as_they_were(tmp_path, syntax, dtype):
    gdcm = pytest.importorskip("gdcm", reason="needs the extra `medical`")
    stored = noise(16, 20, dtype=dtype) // 2
    dicom(tmp_path / "plain.dcm", stored, RescaleSlope="1", RescaleIntercept="-1024")
    opened, change, written = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    opened.SetFileName(str(tmp_path / "plain.dcm"))
    assert opened.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(opened.GetImage())
    assert change.Change()
    written.SetFileName(str(tmp_path / "packed.dcm"))
    written.SetFile(opened.GetFile())
    written.SetImage(change.GetOutput())
    assert written.Write()
    (tmp_path / "plain.dcm").unlink()
    (found,) = read(tmp_path, dtype="float32")
    np.testing.assert_array_equal(found[0], stored.astype(np.int64) - 1024)


def test_a_slope_with_an_intercept_that_is_no_number_is_refused(tmp_path):
    nifti(tmp_path / "a.nii", noise(6, 8, 3, dtype="int16"), slope=2, inter=np.nan)
    assert reason(tmp_path, dtype="float32") == "undecodable: no NIfTI file (HeaderDataError)"


@pytest.mark.parametrize("turned", [False, True])
def test_slices_are_cut_by_orientation_not_by_axis(tmp_path, turned):
    voxels = noise(6, 8, 4, dtype="int16")  # to the right, the front, the head
    stored, affine = voxels, np.eye(4)
    if turned:  # axes in another order, two of them backwards
        stored = voxels.transpose(2, 0, 1)[:, ::-1, ::-1]
        affine = np.array([[0, -1, 0, 5], [0, 0, -1, 7], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    nifti(tmp_path / "a.nii.gz", stored, affine)
    how = {"dtype": "int16"}
    axial, coronal, sagittal = (read(tmp_path, plane=plane, **how) for plane in ("axial", "coronal", "sagittal"))
    assert (len(axial), len(coronal), len(sagittal)) == (4, 8, 6)
    np.testing.assert_array_equal(axial[1][0], voxels[::-1, ::-1, 1].T)  # right at the left, front above
    np.testing.assert_array_equal(coronal[1][0], voxels[::-1, 1, ::-1].T)  # right at the left, head above
    np.testing.assert_array_equal(sagittal[1][0], voxels[1, ::-1, ::-1].T)  # front at the left, head above


def test_a_fourth_axis_is_bands_or_times(tmp_path):
    voxels = noise(6, 8, 3, 2, dtype="int16")
    nifti(tmp_path / "a.nii", voxels)
    (first, *_), whole = read(tmp_path, dtype="int16", channels=2), read(tmp_path, dtype="int16")
    np.testing.assert_array_equal(first, voxels[::-1, ::-1, 0].transpose(2, 1, 0))
    assert len(whole) == 6
    np.testing.assert_array_equal(whole[4][0], voxels[::-1, ::-1, 1, 1].T)
    rows = sources.open_listing(data(tmp_path, dtype="int16", block=2)).rows  # a slice of each time has the same place
    assert [row.attributes["place"] for row in rows] == [0, 0.5, 1] * 2
    assert [row.attributes["block"].rpartition("/")[2] for row in rows] == ["0", "0", "1"] * 2
