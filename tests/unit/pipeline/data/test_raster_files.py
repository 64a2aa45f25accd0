"""The table of inputs with their right values: TIFF, PNG and .npy of any depth and number of bands."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.data import raster_files, sources
from tests.unit.pipeline.data.rasters import data, noise, read, reason


@pytest.mark.parametrize(
    ("bands", "dtype", "how"),
    [
        (1, "uint16", {}),
        (1, "int16", {}),
        (1, "float32", {}),
        (3, "uint16", {"photometric": "rgb"}),  # Pillow: 8 of the 16 bits
        (3, "uint16", {"photometric": "rgb", "planarconfig": "separate"}),  # Pillow: mixes bytes
        (6, "uint16", {"planarconfig": "separate"}),  # Pillow: refuses
        (6, "int16", {"planarconfig": "contig"}),
        (6, "float32", {"planarconfig": "separate", "compression": "zlib"}),
        (3, "uint16", {"photometric": "rgb", "compression": "zlib", "predictor": True}),
        (1, "int16", {"compression": "lzma", "tile": (16, 16)}),
        (1, "uint16", {"byteorder": ">"}),
        (64, "uint8", {"planarconfig": "separate"}),
    ],
)
def test_tiff_is_read_bit_for_bit(tmp_path, bands, dtype, how):
    values = noise(bands, 20, 24, dtype=dtype)
    stored = values[0] if bands == 1 else values.transpose(1, 2, 0) if how.get("planarconfig") != "separate" else values
    tifffile.imwrite(tmp_path / "a.tif", stored, **{"photometric": "minisblack", **how})
    (found,) = read(tmp_path, dtype=dtype, channels=bands)
    assert found.dtype == dtype and found.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("bands", "dtype", "how"),
    [
        (1, "uint16", {"compression": "lzw"}),
        (3, "uint16", {"compression": "lzw", "predictor": 2, "photometric": "rgb"}),
        (6, "int16", {"compression": "lzw", "predictor": 2, "planarconfig": "separate", "tile": (16, 16)}),
        (1, "uint16", {"compression": "lzw", "predictor": 2, "byteorder": ">"}),
        (6, "float32", {"compression": "lzw", "predictor": 3, "planarconfig": "separate"}),
        (1, "float32", {"compression": "zlib", "predictor": 3, "byteorder": ">"}),
        (1, "uint16", {"compression": "packbits"}),
        (1, "uint16", {"compression": "zstd"}),
        (1, "float32", {"compression": "lerc"}),
        (3, "uint16", {"compression": "jpeg2000", "photometric": "rgb"}),
    ],
)
def test_tiff_that_imagecodecs_unpacks(tmp_path, bands, dtype, how):
    pytest.importorskip("imagecodecs", reason="imagecodecs is not installed (extra `geo`)")
    test_tiff_is_read_bit_for_bit(tmp_path, bands, dtype, how)


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_png_of_16_bits_in_colour(tmp_path, bands):
    imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed (extra `geo`)")
    values = noise(20, 24, bands)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(values))
    np.testing.assert_array_equal(read(tmp_path, channels=bands)[0], values.transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_white_is_zero_is_turned_around(tmp_path, dtype):
    stored = noise(20, 24, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
    np.testing.assert_array_equal(read(tmp_path, dtype=dtype)[0][0], np.iinfo(dtype).max - stored)


def test_images_of_other_sizes_in_a_file_are_counted_and_overviews_are_not(tmp_path):
    for name, kind in (("a.tif", 0), ("b.tif", 1)):
        with tifffile.TiffWriter(tmp_path / name) as file:
            file.write(noise(32, 32), photometric="minisblack")
            file.write(noise(16, 16), photometric="minisblack", subfiletype=kind)
    found = sources.open_listing(data(tmp_path))
    assert len(found.rows) == 2
    assert list(found.left_out.json().values()) == [[1, "a.tif"]]


def test_pages_are_images_of_one_band_or_bands_of_one_image(tmp_path):
    values = noise(5, 20, 24)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    np.testing.assert_array_equal(np.stack(read(tmp_path)), values[:, None])
    np.testing.assert_array_equal(read(tmp_path, channels=5), values[None])
    assert reason(tmp_path, channels=4) == "other bands: 1 bands, and `data.channels` is 4"


@pytest.mark.parametrize(("mode", "dtype", "bands"), [("I;16", "uint16", 1), ("L", "uint8", 1), ("RGB", "uint8", 3)])
def test_png(tmp_path, mode, dtype, bands):
    values = noise(20, 24, bands, dtype=dtype)
    Image.fromarray(values[..., 0] if bands == 1 else values).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == mode
    np.testing.assert_array_equal(read(tmp_path, dtype=dtype, channels=bands)[0], values.transpose(2, 0, 1))


def test_palettes_and_what_needs_a_package_are_refused(tmp_path, monkeypatch):
    Image.new("P", (20, 24)).save(tmp_path / "a.png")
    assert reason(tmp_path / "a.png", dtype="uint8").startswith("undecodable: a palette")
    Image.fromarray(noise(20, 24, dtype="uint8")).save(tmp_path / "b.tif", compression="tiff_lzw")
    monkeypatch.setattr(raster_files.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tifffile, "imread", lambda *_, **__: (_ for _ in ()).throw(ValueError("'imagecodecs'")))
    expected = "undecodable: a TIFF of this compression needs imagecodecs: install the extra `geo`"
    assert reason(tmp_path / "b.tif", dtype="uint8") == expected


@pytest.mark.parametrize(
    ("shape", "bands", "count"),
    [((16, 20), 1, 1), ((5, 16, 20), 1, 5), ((16, 20, 1), 1, 1), ((16, 20, 6), 6, 1), ((6, 16, 20), 6, 1),
     ((3, 6, 16, 20), 6, 3), ((3, 16, 20, 6), 6, 3), ((3, 1, 16, 20), 1, 3)],
)  # fmt: skip
def test_npy_with_bands_on_either_side(tmp_path, shape, bands, count):
    values = noise(*shape, dtype="float32")
    np.save(tmp_path / "a.npy", values)
    found = read(tmp_path, dtype="float32", channels=bands)
    last = (bands > 1 and shape[-1] == bands) or shape[-1] == 1
    expected = np.moveaxis(values, -1, -3) if last else values
    np.testing.assert_array_equal(np.stack(found), expected.reshape(count, bands, 16, 20))


def test_hostile_npy_is_no_image(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert reason(tmp_path).startswith("undecodable: no .npy file")
    np.save(tmp_path / "a.npy", np.zeros((4, 0, 0), np.uint16))
    assert reason(tmp_path) == "undecodable: no array of numbers"


def test_a_damaged_tiff_is_told_in_the_project_s_words_alone(tmp_path, capfd, caplog):
    tifffile.imwrite(tmp_path / "a.tif", noise(64, 64), compression="zlib")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    assert reason(tmp_path) in [f"undecodable: its pixels cannot be read ({of})" for of in ("error", "DeflateError")]
    tifffile.imwrite(tmp_path / "a.tif", noise(16, 16), metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages.first.tags[name].overwrite(400_000)
    assert reason(tmp_path).startswith("oversized: 400000x400000")
    tifffile.imwrite(tmp_path / "a.tif", noise(16, 16), tile=(16, 16), compression="zlib", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        for name in ("TileWidth", "TileLength"):
            file.pages.first.tags[name].overwrite(65536)
    assert reason(tmp_path).startswith("oversized: 16x16, 4,294,967,296 values")
    assert "".join(capfd.readouterr()) + caplog.text == ""


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([np.nan, 1.0], "float32", "not finite: 1 of 2 values are NaN or infinite"),
        ([np.inf, -np.inf], "float32", "not finite: 2 of 2 values are NaN or infinite"),
        ([-1, 5], "uint16", "other values: values from -1 to 5 do not fit uint16 (`data.values.dtype`)"),
        ([0.5, 5.0], "int16", "other values: values with fractions do not fit int16 (`data.values.dtype`)"),
        ([2**24 + 1, 0], "float32", "other values: values up to 1.67772e+07 do not fit float32 (`data.values.dtype`)"),
        ([1e300, 0.0], "float32", "other values: values up to 1e+300 do not fit float32 (`data.values.dtype`)"),
    ],
)
def test_what_the_type_cannot_hold_goes_to_quarantine(tmp_path, values, dtype, expected):
    np.save(tmp_path / "a.npy", np.array(values)[None])
    assert reason(tmp_path, dtype=dtype) == expected


def test_whole_numbers_in_floats_fit_a_type_of_whole_numbers(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[-1024.0, 3071.0]]))
    np.testing.assert_array_equal(read(tmp_path, dtype="int16")[0], [[[-1024, 3071]]])


def geotiff(path, values, nodata=None, metadata=None):
    tags = [(raster_files.NODATA, 2, 0, nodata, True)] if nodata else []
    tags += [(raster_files.METADATA, 2, 0, metadata, True)] if metadata else []
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="separate", extratags=tags)


def test_scale_and_offset_of_a_band_give_its_unit(tmp_path):
    stored = noise(2, 16, 16)
    items = (
        '<Item name="SCALE" sample="1" role="scale">0.5</Item><Item name="OFFSET" sample="1" role="offset">-3</Item>'
    )
    geotiff(tmp_path / "a.tif", stored, metadata=f"<GDALMetadata>{items}</GDALMetadata>")
    expected = np.stack([stored[0], stored[1] * 0.5 - 3]).astype(np.float32)
    np.testing.assert_array_equal(read(tmp_path, dtype="float32", channels=2)[0], expected)
    np.testing.assert_array_equal(read(tmp_path, channels=2, rescale=False)[0], stored)
    geotiff(tmp_path / "a.tif", stored, metadata=f"<GDALMetadata>{items.replace('0.5', 'half')}</GDALMetadata>")
    assert reason(tmp_path, channels=2).startswith("undecodable: its scale is no number")


@pytest.mark.parametrize(("nodata", "dtype"), [("7", "uint16"), ("nan", "float32")])
def test_tiles_without_data_are_told_from_tiles_with_zeros(tmp_path, nodata, dtype):
    stored = np.ones((2, 32, 40), dtype)
    stored[0, 3, 3] = float(nodata)
    stored[:, :, 16:32] = 0  # tifffile's `page.nodata` is 0 where the file states none
    geotiff(tmp_path / "a.tif", stored, nodata=nodata)
    geotiff(tmp_path / "b.tif", np.zeros((2, 32, 40), dtype))
    one = data(tmp_path / "a.tif", dtype=dtype, channels=2, tile=16)
    held = raster_files.open_tiff(tmp_path / "a.tif", one)
    assert held.count == 4 and raster_files.open_tiff(tmp_path / "b.tif", one).read(0).sum() == 0
    with pytest.raises(raster_files.BadImage) as caught:
        held.read(0)
    assert caught.value.reason == raster_files.WITHOUT_DATA and held.read(1).sum() == 0


def test_without_data_where_white_is_zero(tmp_path):
    stored = np.array([[255, 3], [2, 1]], np.uint8).repeat(16, 0).repeat(16, 1)
    tags = [(raster_files.NODATA, 2, 0, "255", True)]
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", extratags=tags)
    held = raster_files.open_tiff(tmp_path / "a.tif", data(tmp_path, dtype="uint8", tile=16))
    with pytest.raises(raster_files.BadImage) as caught:
        held.read(0)
    assert caught.value.reason == raster_files.WITHOUT_DATA
    assert [int(held.read(i)[0, 0, 0]) for i in (1, 2, 3)] == [252, 253, 254]


def test_tiles_of_a_block_share_its_name(tmp_path):
    values = noise(70, 85)
    tifffile.imwrite(tmp_path / "a.tif", values)
    one = data(tmp_path, tile=16, block=2)
    held = raster_files.open_tiff(tmp_path / "a.tif", one)
    assert held.count == 4 * 5  # whole tiles only
    np.testing.assert_array_equal(held.read(7)[0], values[16:32, 32:48])
    assert held.blocks[:6] == ("0-0-0", "0-0-0", "0-0-1", "0-0-1", "0-0-2", "0-0-0")
    assert reason(tmp_path, tile=128) == "too small: 70x85 (height x width) holds no tile of 128"


def test_overlapping_tiles_lie_in_one_block_each(tmp_path):
    values = noise(70, 85)
    tifffile.imwrite(tmp_path / "a.tif", values)
    held = raster_files.open_tiff(tmp_path / "a.tif", data(tmp_path, tile=16, block=2, stride=8))
    # 4 x 5 whole tiles: of a side, blocks of 2, 2 and of 2, 2, 1, which hold 3, 3 and 3, 3, 1
    assert held.count == 6 * 7 and len(set(held.blocks)) == 6 and held.blocks.count("0-1-2") == 3
    np.testing.assert_array_equal(held.read(8)[0], values[8:24, 8:24])
    places = {(y, x): f"0-{y // 32}-{x // 32}" for y in (0, 8, 16, 32, 40, 48) for x in (0, 8, 16, 32, 40, 48, 64)}
    assert held.blocks == tuple(places.values())
    rows = sources.open_listing(data(tmp_path, tile=16, block=2, stride=8)).rows  # and are held out with it
    assert [row.together for row in rows] == [f"a/{block}" for block in held.blocks]
    for number, (y, x) in enumerate(places):
        np.testing.assert_array_equal(held.read(number)[0], values[y : y + 16, x : x + 16])
    with pytest.raises(ValueError, match="`stride`: 16 given, expected fewer pixels than `tile`"):
        data(tmp_path, tile=16, stride=16)
