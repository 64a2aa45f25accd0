"""`ldm init` on files of measured values: bands, type, tiles, and what a split keeps together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from click.testing import CliRunner
from PIL import Image

from jobs.init import command
from pipeline.config import Config
from pipeline.data import rasters
from pipeline.errors import UserError
from pipeline.planning import starter
from pipeline.planning.look import Found, look
from tests.unit.pipeline.data.rasters import dicom, nifti, noise
from tests.unit.pipeline.data.test_array_members import npy
from tests.unit.pipeline.data.test_foreign_tars import make, png
from tests.unit.pipeline.planning.test_starter import CPU


def written(found: Found) -> Config:
    chosen = starter.plan(found, CPU, "images")
    return Config.model_validate(yaml.safe_load(starter.write_config(found, chosen, CPU)))


def test_a_scene_is_cut_into_tiles_and_split_by_blocks(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(320, 330, 6), planarconfig="contig", photometric="minisblack")
    found = look(str(tmp_path / "a.tif"))
    data = written(found).data
    assert (found.count, data.channels, data.source.tile, data.split.column) == (625, 6, 32, "block")
    assert data.source.stride == 8  # side by side there would be 100
    assert data.values and data.values.dtype == "uint16"


def test_the_bands_of_scenes_of_one_file_each_are_those_of_the_size_that_most_have(tmp_path: Path) -> None:
    for name in ("LC08_1", "LC08_2"):
        for band, side in (("B2", 160), ("B3", 160), ("B10", 160), ("B8", 320)):
            tifffile.imwrite(tmp_path / f"{name}_SR_{band}.TIF", noise(side, side), photometric="minisblack")
    data = written(look(str(tmp_path))).data
    assert data.source.bands == ("_SR_B2.TIF", "_SR_B3.TIF", "_SR_B10.TIF")
    assert (data.channels, data.source.tile, data.split.column) == (3, 32, "block")


@pytest.mark.parametrize(
    ("values", "dtype"), [(noise(30, 40, 40, dtype="int16"), "int16"), (noise(30, 40, 40, dtype="float32"), "float32")]
)
def test_npy_of_many_images(tmp_path: Path, values: np.ndarray, dtype: str) -> None:
    np.save(tmp_path / "a.npy", values)
    data = written(look(str(tmp_path))).data
    assert data.values and (data.values.dtype, data.channels, data.source.tile) == (dtype, 1, None)


def test_of_few_images_neither_small_values_nor_places_without_data_mislead(tmp_path: Path) -> None:
    for i in range(40):
        dark = noise(40, 40, dtype="uint8").astype(np.uint16)
        tifffile.imwrite(tmp_path / f"{i}.tif", dark, extratags=[(42113, 2, 0, "0", True)] if i % 2 else None)
    found = look(str(tmp_path))
    data = written(found).data
    assert data.values and data.values.dtype == "uint16" and not found.problems
    for i in range(20):
        tifffile.imwrite(tmp_path / f"{i}.tif", noise(40, 40, dtype="float32").astype("complex64"))
    assert set(look(str(tmp_path)).problems) == {"undecodable"}


def test_scans_are_split_by_subject(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="needs the extra `medical`")
    for i in range(40):
        dicom(tmp_path / f"{i}.dcm", noise(40, 40, dtype="int16") // 8, PatientID=str(i // 2), RescaleIntercept="-1024",
              RescaleSlope="1")  # fmt: skip
    found = look(str(tmp_path))
    data = written(found).data
    assert data.values and (data.values.dtype, data.split.column, found.gray) == ("int16", "subject", 1)
    assert "neither names nor attributes are kept" in " ".join(found.notes)


def test_one_volume_is_split_by_blocks_of_slices(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="needs the extra `medical`")
    nifti(tmp_path / "a.nii.gz", noise(40, 40, 60, dtype="int16"))
    assert written(look(str(tmp_path))).data.split.column == "block"


def test_sixteen_bits_are_values_and_eight_are_pictures(tmp_path: Path) -> None:
    for i in range(20):
        for name, dtype in (("deep", "uint16"), ("plain", "uint8")):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(noise(40, 40, dtype=dtype)).save(tmp_path / name / f"{i}.png")
            (tmp_path / f"{name}-tif").mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / f"{name}-tif" / f"{i}.tif", noise(40, 40, 3, dtype=dtype), photometric="rgb")
    kinds = {place.name: look(str(place)).source["kind"] for place in sorted(tmp_path.iterdir())}
    assert kinds == {"deep": "rasters", "deep-tif": "rasters", "plain": "folder", "plain-tif": "folder"}


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no image of 1 can be read"):
        look(str(tmp_path))
    np.savez(tmp_path / "b", a=np.zeros(3))
    (tmp_path / "b.npz").replace(tmp_path / "a.npy")
    with pytest.raises(UserError, match="no image of 1 can be read"):
        look(str(tmp_path))


def test_a_damaged_file_among_sound_ones_is_counted(tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(noise(40, 40)).save(tmp_path / f"{i}.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "0.png").read_bytes()[:25])
    assert look(str(tmp_path)).problems == {"undecodable": 1}


def test_what_is_left_out_beside_files_of_patients_is_counted_and_not_named(tmp_path: Path) -> None:
    """In the listing, so in ingest's report and manifest, in what `ldm init` prints, and in what it refuses."""
    source = tmp_path / "source"
    for i in range(16):
        place = source / f"Doe_Jane{i // 2}"
        place.mkdir(parents=True, exist_ok=True)
        dicom(place / f"doe{i}.dcm", noise(32, 32, dtype="int16"), PatientID=f"Doe{i // 2}")
    place = source / "Doe_Jane0"
    (place / "doe-again.dcm").write_bytes((place / "doe0.dcm").read_bytes())
    (place / ".doe-hidden").mkdir()
    (place / "doe-link.dcm").symlink_to(place / "doe-nowhere.dcm")
    (source / "doe-folder").symlink_to(place)
    (place / "doe.txt").write_text("Jane Doe")
    left_out = look(str(source)).left_out
    reasons = left_out.json()
    assert len(reasons) >= 3 and {first for _, first in reasons.values()} == {rasters.UNNAMED}
    said = CliRunner().invoke(command, ["--source", str(source), "-o", "-"], catch_exceptions=False)
    assert said.exit_code == 0 and "(not named: files of patients)" in said.output
    assert "doe" not in said.output.lower(), said.output
    for path in source.rglob("*.dcm"):
        if not path.is_symlink():
            path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"no image of 1[67] can be read") as refused:
        look(str(source))
    assert "doe" not in str(refused.value).lower()


def arrays(count: int, *shape: int, dtype: str = "int16", name: str = "npy") -> list[tuple[str, bytes]]:
    return [(f"{i:03d}.{name}", npy(noise(*shape, dtype=dtype))) for i in range(count)]


@pytest.mark.parametrize(
    ("shape", "dtype", "name", "channels"),
    [((32, 32, 5), "int16", "npy", 5), ((2, 32, 32), "float32", "npy", 2), ((32, 32), "uint16", "image.npy", 1)],
)
def test_tars_of_arrays(tmp_path: Path, shape: tuple[int, ...], dtype: str, name: str, channels: int) -> None:
    classes = [(f"{i:03d}.cls", str(i % 2).encode()) for i in range(40)]
    other = [(f"{i:03d}.mask.npz", b"") for i in range(40)]
    for tar in ("train-0", "train-1", "val-0"):
        members = [*arrays(40, *shape, dtype=dtype, name=name), *classes, *other]
        make(tmp_path / f"{tar}.tar", sorted(members))
    found = look(str(tmp_path))
    data = written(found).data
    assert data.values and (data.values.dtype, data.channels, data.source.kind) == (dtype, channels, "webdataset")
    assert (data.split.by, data.source.image) == ("shards", None if name == "npy" else name)
    assert (found.count, found.held_out, found.classes, found.problems) == (80, 40, {"0": 40, "1": 40}, {})


def test_a_damaged_array_in_a_tar_is_counted_and_none_at_all_is_one_line(tmp_path: Path) -> None:
    make(tmp_path / "a.tar", [*arrays(20, 32, 32), ("x.npy", b"no array"), ("y.npy", npy(noise(32, 32, 2)))])
    found = look(str(tmp_path / "a.tar"))
    assert found.problems["undecodable"] <= 1 and found.channels == 1 and found.source["kind"] == "webdataset"
    make(tmp_path / "b.tar", [("x.npy", b"no array"), ("y.npy", npy(np.array([{}], dtype=object)))])
    with pytest.raises(UserError, match=r"b\.tar: no image of 2 can be read \(undecodable\)"):
        look(str(tmp_path / "b.tar"))


def test_arrays_beside_images_are_no_images(tmp_path: Path) -> None:
    images = [(f"{i:03d}.png", png(i)) for i in range(20)]
    make(tmp_path / "a.tar", sorted([*images, *arrays(20, 512)]))
    found = look(str(tmp_path / "a.tar"))
    assert found.values is None and found.sizes[0] == (9, 8)
