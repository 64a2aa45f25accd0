"""What a folder holds: hidden files stay out, links are followed once, formats that are not read are counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from pipeline.applications import score
from pipeline.data import denoise, sources, transforms
from pipeline.data.folders import walk
from pipeline.data.listing import class_order, keys_of, plain
from pipeline.errors import UserError
from pipeline.schema.data import Data


def make(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 1, 2)).save(path, "AVIF" if name.endswith("avif") else "PNG")
    return root


def listed(root: Path):
    return sources.open_listing(Data(source={"kind": "folder", "path": str(root)}))


def test_parts_that_begin_with_a_dot_are_left_out_and_counted(tmp_path):
    root = make(tmp_path / ".data", "c0/1.png", ".thumbnails/1.png", "c0/.ipynb_checkpoints/1.png", "__MACOSX/1.png",
                "c0/._1.png", "c0/.hidden.txt.png")  # fmt: skip
    (root / "c0" / ".DS_Store").write_text("no image")
    found = listed(root)
    assert [row.key for row in found.rows] == ["c0/1"] and found.classes == ["c0"]
    assert found.left_out.json() == {"hidden folders": [3, ".thumbnails"], "hidden images": [2, "c0/._1.png"]}
    assert score.listing(root, ["c0"])[0] == ["c0/1.png"]
    assert list(denoise.load(root, None, 9)) == ["c0/1"]


def test_links_to_folders_are_followed_and_circles_are_not(tmp_path):
    store = make(tmp_path / "store", "a/1.png", "a/2.png")
    (store / "a" / "round").symlink_to(store / "a")
    (store / "a" / "back").symlink_to(store)
    root = make(tmp_path / "root", "b/3.png", ".kept/4.png")
    (root / "a").symlink_to("../store/a")  # outside
    (root / "again").symlink_to(root / "b")  # listed anyway
    (root / "up").symlink_to(tmp_path)  # holds the root
    (root / "c").symlink_to(".kept")  # inside, but hidden: met by the link alone
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    found = walk(root)
    assert [str(path) for path in found.files] == ["a/1.png", "a/2.png", "b/3.png", "c/4.png"]
    reasons = found.left_out.json()
    assert reasons["links to folders that are listed anyway"] == [2, "again"]
    assert reasons["links that lead nowhere"] == [1, "gone.png"]
    assert sum(count for reason, (count, _) in reasons.items() if "circle" in reason) == 2
    assert listed(root).classes == ["a", "b", "c"]


def test_a_pipe_is_no_image(tmp_path):
    root = make(tmp_path, "1.png")
    os.mkfifo(root / "2.png")
    found = walk(root)
    assert [str(path) for path in found.files] == ["1.png"]
    assert found.left_out.json() == {"pipes, sockets or devices": [1, "2.png"]}


def test_avif_is_read_and_other_formats_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(transforms, "FORMATS", dict(transforms.FORMATS))
    for extension in transforms.HEIF:
        transforms.FORMATS.pop(extension, None)
    monkeypatch.setattr("pipeline.data.folders.FORMATS", transforms.FORMATS)
    root = make(tmp_path / "a", "1.avif", "2.png")
    for name in ("3.heic", "4.HEIC", "5.jxl", "6.svg", "notes.txt"):
        (root / name).write_bytes(b"x")
    found = listed(root)
    assert [row.key for row in found.rows] == ["1", "2"]
    assert str(found.left_out) == (
        "2 .heic files, which the extra `heif` reads (such as 3.heic); 1 .jxl files, a format that is not read (such "
        "as 5.jxl); 1 .svg files, a format that is not read (such as 6.svg)"
    )
    image = transforms.decode((root / "1.avif").read_bytes(), 3, (0, 0, 0), 1000, "avif")
    assert image.size == (9, 9) and image.mode == "RGB"
    for name in ("1.avif", "2.png"):
        (root / name).unlink()
    with pytest.raises(UserError, match=r"holds no images that are read, but 2 \.heic files, which the extra `heif`"):
        listed(root)


def test_heic_is_read_where_its_package_is(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (9, 8), (200, 10, 20)).save(tmp_path / "1.heic", "HEIF")
    (row,) = listed(tmp_path).rows
    content = (tmp_path / "1.heic").read_bytes()
    for extension in ("heic", None):  # a tar's image is read later without its name
        assert transforms.decode(content, 3, (0, 0, 0), 1000, extension).size == (9, 8)
    assert row.key == "1"


def test_a_stem_with_several_suffixes_keeps_them_in_its_keys():
    names = ["a/x.png", "a/x.webp", "a/y.png", "b/x.png", "a/z.png", "a/z.jpg", "a/z.png.gif"]
    assert keys_of(names) == ["a/x.png", "a/x.webp", "a/y", "b/x", "a/z.png", "a/z.jpg", "a/z.png.gif"]
    assert keys_of(["a/x.y.png", "top.jpg"]) == ["a/x.y", "top"]


def test_files_of_one_stem_are_split_together(tmp_path):
    from pipeline.data.assign import assign

    names = [f"{i}.{kind}" for i in range(40) for kind in ("png", "webp")]
    root = tmp_path / "a"
    root.mkdir()
    for number, name in enumerate(names):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(root / name, lossless=True)
    data = Data(source={"kind": "folder", "path": str(root)}, split={"val_fraction": 0.4})
    assigned = assign(data, sources.open_listing(data))
    train, val = ([row.key for _, row in rows] for rows in assigned.rows)
    assert sorted(train + val) == sorted(names) and not assigned.quarantine
    assert val and not {key.partition(".")[0] for key in train} & {key.partition(".")[0] for key in val}


def test_names_that_are_no_utf8_are_written_by_percent(tmp_path):
    assert plain("été 100%") == "été 100%"
    assert plain(os.fsdecode(b"\xe9t\xe9 5%.png")) == "%E9t%E9 5%25.png"
    assert plain("half \ud83d") == "half %uD83D"
    root = make(tmp_path / "a", "c/1.png")
    (root / "c" / "1.png").rename(root / "c" / os.fsdecode(b"\xe9.png"))
    (root / "c").rename(root / os.fsdecode(b"\xe0"))
    found = listed(root)
    assert [(row.key, row.label) for row in found.rows] == [("%E0/%E9", "%E0")]
    assert sources.reader(Data(source={"kind": "folder", "path": str(root)}).source)(found.rows[0].location)
    with pytest.raises(UserError, match="%FF: the path is not UTF-8"):
        listed(root.rename(tmp_path / os.fsdecode(b"\xff")))


def test_classes_that_are_numbers_are_in_the_order_of_numbers():
    assert class_order(map(str, range(12, 0, -1))) == [str(i) for i in range(1, 13)]
    assert class_order({"1", "01", "2", "10"}) == ["01", "1", "2", "10"]
