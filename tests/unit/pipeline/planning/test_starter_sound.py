"""`ldm init` for sounds: what is recognised, and a config that is one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import config
from pipeline.errors import UserError
from pipeline.planning import starter_sound
from pipeline.planning.fits import check_models
from pipeline.planning.starter import Machine
from tests.unit.pipeline.data.sounds import tone, write

CPU, GPU = Machine(0, 0, 2), Machine(1, int(16e9), 8)


@pytest.fixture(scope="module")
def drums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drums")
    lines = ["file,label,kit"]
    for i in range(120):
        write(folder / "in" / ("kick", "snare")[i % 2] / f"{i}.wav", tone(100 + i, 16_000), rate=16_000)
        lines.append(f"in/{('kick', 'snare')[i % 2]}/{i}.wav,{('kick', 'snare')[i % 2]},kit{i % 20}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    names, *rows = (line.split(",") for line in lines)
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), folder / "t.parquet")
    return folder


@pytest.mark.parametrize("machine", [CPU, GPU])
@pytest.mark.parametrize("source", ["in", "t.csv", "t.parquet"])
def test_the_config_is_one(drums: Path, tmp_path: Path, machine: Machine, source: str) -> None:
    found = starter_sound.look(str(drums / source))
    assert found and found.listing.classes == ["kick", "snare"] and found.stereo == 0
    assert found.groups == (None if source == "in" else "kit")
    text = starter_sound.write_config(found, machine, "drums", quick=False)
    (tmp_path / "drums.yaml").write_text(text)
    made = config.load(tmp_path / "drums.yaml")
    assert made.data.sound and made.data.sound.frames % 16 == 0 and made.data.split.column == found.groups
    assert made.diffusion.condition.kind == "class"
    check_models(made)
    assert "120 sounds, 2 classes" in starter_sound.told(found)[0]
    assert "steps: 200" in starter_sound.write_config(found, machine, "drums", quick=True)


def test_one_odd_file_decides_on_nothing(drums: Path, tmp_path: Path) -> None:
    shutil.copytree(drums / "in", tmp_path / "in")
    write(tmp_path / "in" / "kick" / "old.wav", tone(100, 4000), rate=4000)
    found = starter_sound.look(str(tmp_path / "in"))
    assert found and "sound: {rate: 16000," in starter_sound.write_config(found, CPU, "drums", quick=False)
    for i in range(8):
        (tmp_path / "in" / "kick" / f"bad{i}.wav").write_bytes(b"no")
    found = starter_sound.look(str(tmp_path / "in"))
    assert found and "8 cannot be used (8 undecodable): ingest will refuse them" in starter_sound.told(found)[1]


def test_a_column_of_lists_groups_sounds_as_well(drums: Path) -> None:
    names = sorted((drums / "in" / "kick").iterdir())
    lines = [json.dumps({"sound": f"in/kick/{name.name}", "artist": ["a", i % 9]}) for i, name in enumerate(names)]
    (drums / "t.jsonl").write_text("\n".join(lines))
    found = starter_sound.look(str(drums / "t.jsonl"))
    assert found and found.groups == "artist"


def test_long_files_are_cut(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path / f"{i}.flac", np.tile(tone(100 + i, 16_000), 24), rate=16_000)
    found = starter_sound.look(str(tmp_path))
    assert found and "cut: all" in starter_sound.write_config(found, CPU, "talk", quick=True)


def test_what_is_not_sound_or_too_little(tmp_path: Path) -> None:
    assert starter_sound.look(str(tmp_path)) is None
    (tmp_path / "t.csv").write_text("image,label\na.png,1\n")
    assert starter_sound.look(str(tmp_path / "t.csv")) is None and starter_sound.look("digits") is None
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.wav").write_bytes(b"no")
    with pytest.raises(UserError, match=r"none of 1 file is a sound that can be read \(1 undecodable\)"):
        starter_sound.look(str(tmp_path / "bad"))
    write(tmp_path / "few" / "a.wav")
    found = starter_sound.look(str(tmp_path / "few"))
    assert found
    with pytest.raises(UserError, match="1 sound: at least 100"):
        starter_sound.write_config(found, CPU, "few", quick=False)
