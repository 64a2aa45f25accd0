"""Scenes of one file a band: which files are one, what they are called, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from pydantic import ValidationError

from pipeline.data import rasters, sources
from pipeline.data.raster_files import NODATA
from pipeline.data.transforms import BadImage
from pipeline.errors import UserError
from tests.unit.pipeline.data.rasters import data, noise

BANDS = ["_B4.TIF", "_B3.TIF", "_B2.TIF"]


def scene(root, name, bands=("B2", "B3", "B4"), shape=(32, 48), nodata=None):
    """Files of a scene as Landsat has them; its values by band."""
    values = {band: noise(*shape) for band in bands}
    root.mkdir(parents=True, exist_ok=True)
    tags = [(NODATA, 2, 0, nodata, True)] if nodata else []
    for band, array in values.items():
        tifffile.imwrite(root / f"{name}_{band}.TIF", array, photometric="minisblack", extratags=tags)
    return values


def listed(path, **how):
    one = data(path, channels=3, bands=how.pop("bands", BANDS), **how)
    return one, sources.open_listing(one)


def test_files_that_differ_in_their_band_are_one_scene(tmp_path):
    first = scene(tmp_path / "one", "LC08_L1TP_T1", ("B1", "B2", "B3", "B4"))
    second = scene(tmp_path, "LC08_L1TP_T2")
    scene(tmp_path, "LC08_L1TP_T3", ("B2", "B4"))
    one, found = listed(tmp_path)
    assert [row.key for row in found.rows] == ["LC08_L1TP_T2", "one/LC08_L1TP_T1"]
    read = rasters.reader(one)
    for row, values in zip(found.rows, (second, first), strict=True):
        np.testing.assert_array_equal(read(row), np.stack([values["B4"], values["B3"], values["B2"]]))
    left_out = found.left_out.json()
    assert left_out["files that end in none of `data.source.bands`"] == [1, "one/LC08_L1TP_T1_B1.TIF"]
    assert left_out["scenes without all of `data.source.bands`"] == [1, "LC08_L1TP_T3_B2.TIF"]


def test_scenes_are_cut_into_tiles_and_their_content_is_that_of_all_files(tmp_path):
    values = scene(tmp_path, "a")
    one, found = listed(tmp_path, tile=16, block=1)
    assert [row.key for row in found.rows] == [f"a/{i:05d}" for i in range(6)]
    np.testing.assert_array_equal(rasters.reader(one)(found.rows[4])[2], values["B2"][16:, 16:32])
    before = sources.source_fingerprint(one)
    assert before != sources.source_fingerprint(listed(tmp_path, tile=16, block=1, bands=BANDS[::-1])[0])
    changed = values["B2"].copy()
    changed[0, 0] ^= 1
    tifffile.imwrite(tmp_path / "a_B2.TIF", changed, photometric="minisblack")  # not the first file of the scene
    assert sources.source_fingerprint(one) != before
    with pytest.raises(UserError, match="the file of a/00000 changed"):
        rasters.reader(one)(found.rows[0])


def test_a_place_without_data_in_any_band_takes_the_tile_out(tmp_path):
    scene(tmp_path, "a", ("B3", "B4"))
    stored = np.ones((32, 48), np.uint16)
    stored[0, 0] = 0
    tifffile.imwrite(tmp_path / "a_B2.TIF", stored, photometric="minisblack", extratags=[(NODATA, 2, 0, "0", True)])
    one, found = listed(tmp_path, tile=16, block=1)
    with pytest.raises(BadImage, match="without data"):
        rasters.reader(one)(found.rows[0])
    assert rasters.reader(one)(found.rows[1]).shape == (3, 16, 16)


def test_bands_of_unlike_sizes_are_one_line(tmp_path):
    scene(tmp_path, "a", ("B2", "B3"))
    scene(tmp_path, "a", ("B4",), (64, 96))
    with pytest.raises(UserError, match=r"a_B4.TIF is 64x96 \(height x width\) and a_B3.TIF 32x48; name bands"):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("bands", "channels", "message"),
    [(BANDS, 4, "`source.bands` are 3"), (["B2.TIF", "_B2.TIF"], 2, "the end of another one")],
)
def test_bands_that_cannot_be_are_refused(tmp_path, bands, channels, message):
    with pytest.raises(ValidationError, match=message):
        data(tmp_path, channels=channels, bands=bands)


def test_bands_are_no_files_of_patients(tmp_path):
    (tmp_path / "JANE_DOE_B2.nii").write_bytes(b"x")
    with pytest.raises(UserError, match="leave them out for DICOM and NIfTI") as caught:
        listed(tmp_path)
    assert "JANE" not in str(caught.value)
