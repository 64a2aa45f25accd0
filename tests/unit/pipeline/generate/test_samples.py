"""Samples that are added to those of a folder: numbered on, none overwritten, one list and one grid of all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.pictures import Images, grid
from pipeline.errors import UserError
from pipeline.files import read_json, sha256_file
from pipeline.generate.samples import Earlier, earlier, write_samples

WHOLE: Images = np.random.Generator(np.random.Philox(0)).integers(0, 256, (5, 4, 6, 3), np.uint8)


def info(classes: list[int], seed: int = 0) -> dict[str, Any]:
    return {"model": {}, "request": {"classes": classes, "seed": seed}, "class_names": ["a", "b"]}


def model(*classes: str) -> Any:
    return SimpleNamespace(classes=list(classes), values=None)


def pixels(path: Path) -> Images:
    with Image.open(path) as image:
        return np.asarray(image)


def test_added_images_are_numbered_on(tmp_path: Path) -> None:
    write_samples(tmp_path, WHOLE[:2], info([0, 1]))
    first = {p.name: p.read_bytes() for p in tmp_path.glob("0*.png")}
    for start, stop, seed in ((2, 4, 7), (4, 5, 8)):
        before = earlier(tmp_path, add=True)
        assert before.next == start
        before.check(tmp_path, model("a", "b"), (4, 6))
        write_samples(tmp_path, WHOLE[start:stop], info([1], seed), before)
    assert {name: (tmp_path / name).read_bytes() for name in first} == first
    found = read_json(tmp_path / "samples.json")
    assert [(e["file"], e["index"], e["class"]) for e in found["images"]] == [
        (f"{i:06d}.png", i, chosen) for i, chosen in enumerate([0, 1, 1, 1, 1])
    ]
    for entry, image in zip(found["images"], WHOLE, strict=True):
        assert np.array_equal(pixels(tmp_path / entry["file"]), image)
        assert entry["sha256"] == sha256_file(tmp_path / entry["file"])
    assert [(added["first"], added["request"]["seed"]) for added in found["added"]] == [(2, 7), (4, 8)]
    assert found["request"]["seed"] == 0 and "first" not in found
    assert np.array_equal(pixels(tmp_path / "grid.png"), grid(WHOLE))


def test_what_is_gone_is_said_and_its_number_stays_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_samples(tmp_path, WHOLE[:3], info([0]))
    (tmp_path / "000000.png").unlink()
    (tmp_path / "000002.png").unlink()
    before = earlier(tmp_path, add=True)
    assert "2 images gone that samples.json lists" in capsys.readouterr().out
    write_samples(tmp_path, WHOLE[3:], info([0]), before)
    assert [e["index"] for e in read_json(tmp_path / "samples.json")["images"]] == [1, 3, 4]
    assert np.array_equal(pixels(tmp_path / "grid.png"), grid(WHOLE[[1, 3, 4]]))


def test_files_of_others_and_of_a_killed_attempt_stay(tmp_path: Path) -> None:
    """A number is taken whatever the suffix; no samples.json: what lies there is not believed to be ours."""
    (tmp_path / "000007.jpg").write_text("x")
    (tmp_path / "notes.txt").write_text("x")
    before = earlier(tmp_path, add=True)
    assert before == Earlier(next=8)
    write_samples(tmp_path, WHOLE[:1], info([0]), before)
    assert [e["file"] for e in read_json(tmp_path / "samples.json")["images"]] == ["000008.png"]
    assert (tmp_path / "000007.jpg").read_text() == "x" and read_json(tmp_path / "samples.json")["first"] == 8


def test_sets_that_do_not_mix_are_refused_before_any_image_is_made(tmp_path: Path) -> None:
    write_samples(tmp_path / "out", WHOLE[:2], info([0]))
    with pytest.raises(UserError, match=r"not an empty folder.*--add"):
        earlier(tmp_path / "out", add=False)
    before = earlier(tmp_path / "out", add=True)
    with pytest.raises(UserError, match="other classes"):
        before.check(tmp_path / "out", model("a", "c"), (4, 6))
    with pytest.raises(UserError, match="4x6 pixels, and these are to be 8x8"):
        before.check(tmp_path / "out", model("a", "b"), (8, 8))
    for suffix, others in ((".wav", "sounds"), (".webp", "clips")):
        info_of = {"class_names": ["a"], "images": [{"file": f"000000{suffix}"}]}
        with pytest.raises(UserError, match=f"holds {others}, and these are to be images"):
            Earlier(info_of, 1).check(tmp_path, model("a"), (4, 6))
    with pytest.raises(UserError, match="another shape"):
        write_samples(tmp_path / "out", WHOLE[2:, :, :, :1], info([0]), before)
    assert not (tmp_path / "out" / "000002.png").exists()
    (tmp_path / "out" / "samples.json").write_text("[]")
    with pytest.raises(UserError, match="is not what `ldm sample` writes"):
        earlier(tmp_path / "out", add=True)
    (tmp_path / "out" / "samples.json").unlink()
    with pytest.raises(UserError, match=r"its grid\.png is none of"):
        earlier(tmp_path / "out", add=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="not an empty folder"):
        earlier(tmp_path / "file", add=True)
