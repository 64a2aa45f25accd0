"""`ldm init` for clips: what is one, what is looked at, a config that loads."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.errors import UserError
from pipeline.planning import starter_clips
from pipeline.schema.data import Data
from tests.unit.pipeline.data.clips import animation

CPU, GPU = SimpleNamespace(gpus=0, cpus=2), SimpleNamespace(gpus=1, cpus=8)


def picture(seed: int, count: int) -> np.ndarray:
    few = np.random.default_rng(seed).integers(0, 4, (count, 40, 48, 3), np.uint8)  # GIFs of more colours take seconds
    return 80 * few


def test_a_folder_of_clips_of_which_some_stand_still(tmp_path):
    for i in range(30):
        animation(tmp_path / "ab"[i % 2] / f"{i}.webp", picture(i, 12), 100)
    for i in range(10):
        Image.fromarray(picture(100 + i, 1)[0]).save(tmp_path / "a" / f"still{i}.webp")
    animation(tmp_path / "a" / "zero.gif", picture(7, 3), 0)
    found = starter_clips.look(str(tmp_path))
    assert found and len(found.listing.rows) == 41 and found.sides and set(found.sides) == {40}
    assert 0.1 < found.still < 0.4 and set(found.rates) == {10}
    assert any("of one frame: they go to quarantine" in line for line in starter_clips.told(found))
    for machine, quick in ((CPU, False), (CPU, True), (GPU, False)):
        config = yaml.safe_load(starter_clips.write_config(found, machine, "moving", quick))
        data = Data.model_validate(config["data"])
        assert data.clip and data.clip.frames == 9 and data.clip.rate == 8 and data.size == 32  # 1.2 s are long enough
        assert found.still < data.max_quarantine < 1 and config["diffusion"]["condition"] == {"kind": "class"}
        steps = config["autoencoder"]["training"]["steps"]
        assert steps < 100 if quick else steps >= 2000


def test_shares_are_of_the_files_looked_at(tmp_path):
    for i in range(50):  # of which every third is looked at
        animation(tmp_path / f"{i:02d}.gif", picture(i, 12), 0 if i % 4 == 0 else 100)
    found = starter_clips.look(str(tmp_path))
    assert found and found.looked == 17 and found.bad == {"no duration": 5}
    config = yaml.safe_load(starter_clips.write_config(found, CPU, "moving", False))
    assert config["data"]["max_quarantine"] == 0.4  # 5 / 17, and some room


def test_folders_of_damaged_clips_are_said_to_be(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "b.mp4").write_text("a page of a login")
    said = r"none of 2 files looked at is a clip that can be read \(2 wrongly named\)"
    with pytest.raises(UserError, match=said):
        starter_clips.look(str(tmp_path))


def test_folders_of_pictures_are_none(tmp_path):
    for i in range(8):
        Image.fromarray(picture(i, 1)[0]).save(tmp_path / f"{i}.png")
    animation(tmp_path / "one.gif", picture(9, 4), 100)
    assert starter_clips.look(str(tmp_path)) is None
    assert starter_clips.look("digits") is None


def test_tables_of_clips(tmp_path):
    for i in range(20):
        animation(tmp_path / f"{i}.gif", picture(i, 12), 100)
    rows = "".join(f"{i}.gif,{'xy'[i % 2]}\n" for i in range(20))
    (tmp_path / "clips.csv").write_text(f"video,label\n{rows}")
    found = starter_clips.look(str(tmp_path / "clips.csv"))
    assert found and found.source == {
        "kind": "clips",
        "path": str(tmp_path / "clips.csv"),
        "column": "video",
        "label": "label",
    }
    (tmp_path / "images.csv").write_text("image,label\n0.gif,x\n")
    assert starter_clips.look(str(tmp_path / "images.csv")) is None
    (tmp_path / "few").mkdir()
    animation(tmp_path / "few" / "a.gif", picture(0, 5), 100)
    few = starter_clips.look(str(tmp_path / "few"))
    with pytest.raises(UserError, match="about 1 moving clip: at least 16 are needed"):
        starter_clips.write_config(few, CPU, "few", False)


@pytest.mark.parametrize(
    ("frames", "rate", "window"), [(30, 10, (9, 6)), (10, 10, (9, 10)), (6, 10, (5, 10)), (3, 25, (3, 25))]
)
def test_a_window_is_no_longer_than_clips_are(frames, rate, window):
    found = starter_clips.Clips({}, None, [frames / rate] * 20, [40] * 20, [float(rate)] * 20, 0.0, {}, 20)
    assert starter_clips._window(found) == window and window[0] <= window[1] * frames / rate


def test_clips_of_two_frames_are_one_line():
    found = starter_clips.Clips({}, None, [0.2] * 20, [40] * 20, [10.0] * 20, 0.0, {}, 20)
    with pytest.raises(UserError, match=r"fewer than 3 frames \(0.2 s, 10 frames a second\)"):
        starter_clips._window(found)
