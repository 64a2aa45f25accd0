"""Sounds as sources, as shards hold them and as models see them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.cluster.inline import Inline
from pipeline.data import sounds, waves
from pipeline.data.index import Index, read_image
from pipeline.data.listing import Digests
from pipeline.data.sources import source_fingerprint
from pipeline.data.transforms import BadImage
from pipeline.data.value_map import ValueMap
from pipeline.errors import UserError
from pipeline.stages import ingest
from tests.unit.pipeline.data.sounds import data_of, tone, write


def read_all(path: Path, **more: object) -> tuple[list, list]:
    data = data_of(path, **more)
    rows = sounds.list_sounds(data, Digests(None)).rows
    read = sounds.reader(data)
    return rows, [read(row) for row in rows]


def test_folders_are_classes(tmp_path: Path) -> None:
    write(tmp_path / "kick" / "a.wav")
    write(tmp_path / "snare" / "a.flac", tone(880))
    write(tmp_path / "snare" / "b.aiff", tone(660))
    (tmp_path / "snare" / "notes.txt").write_text("no sound")
    data = data_of(tmp_path)
    found = sounds.list_sounds(data, Digests(None))
    assert [(row.key, row.label) for row in found.rows] == [
        ("kick/a", "kick"), ("snare/a", "snare"), ("snare/b", "snare"),
    ]  # fmt: skip
    assert found.classes == ["kick", "snare"]


def test_a_folder_may_be_called_as_a_table_is(tmp_path: Path) -> None:
    write(tmp_path / "set.csv" / "a.wav")
    assert [row.key for row in sounds.list_sounds(data_of(tmp_path / "set.csv"), Digests(None)).rows] == ["a"]


def test_tables_have_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    write(tmp_path / "b.wav", tone(660))
    (tmp_path / "t.csv").write_text("file,what,said,kit\na.wav,kick,a low kick,x\nb.wav,snare,,y\nc.wav,snare,,y\n")
    source = {"sound": "file", "label": "what", "caption": "said"}
    found = sounds.list_sounds(data_of(tmp_path / "t.csv", source=source), Digests(None))
    assert [(row.key, row.label, row.caption, row.attributes) for row in found.rows] == [
        ("a", "kick", "a low kick", {"kit": "x"}), ("b", "snare", None, {"kit": "y"}),
    ]  # fmt: skip
    assert found.missing == ["c.wav"]
    with pytest.raises(UserError, match="no column 'sound'"):
        sounds.list_sounds(data_of(tmp_path / "t.csv"), Digests(None))


def test_a_long_file_is_cut_at_its_start_or_in_pieces(tmp_path: Path) -> None:
    whole = np.concatenate([tone(440), tone(880), np.zeros(4096), tone(330)[:1000]])  # 3 sounds and a quarter
    write(tmp_path / "a.wav", whole, subtype="FLOAT")
    rows, (start,) = read_all(tmp_path)
    assert [row.key for row in rows] == ["a"]
    values, rate = waves.from_wav(start.wav)
    assert rate == 8000 and np.array_equal(values[:, 0], whole[:4096].astype(np.float32))
    data = data_of(tmp_path, source={"cut": "all"})
    rows = sounds.list_sounds(data, Digests(None)).rows
    assert [(row.key, row.together) for row in rows] == [(f"a/0000{i}", "a") for i in range(3)]
    read = sounds.reader(data)
    assert np.array_equal(waves.from_wav(read(rows[1]).wav)[0][:, 0], whole[4096:8192].astype(np.float32))
    with pytest.raises(BadImage, match=sounds.SILENCE):
        read(rows[2])


def test_pieces_of_no_whole_number_of_samples_end_with_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 40 * 22050), rate=22050)
    rows, found = read_all(tmp_path, source={"cut": "all"}, sound={"seconds": 0.064})  # 1411.2 samples each
    assert len(rows) == len(found) == int(40 * 22050 / 1412 + 0.5)


def test_shards_hold_the_samples_of_the_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-32768, 32768, (3000, 2)).astype(np.int16)
    write(tmp_path / "a.flac", values, rate=44_100)
    _, (held,) = read_all(tmp_path)
    back, rate = waves.from_wav(held.wav)
    assert rate == 44_100 and back.dtype == np.int16 and np.array_equal(back, values)
    assert held.values.shape == (1, 16, 32) and (held.milliseconds, held.rate) == (68, 44_100)


def heard(values: np.ndarray, rate: int = 8000, channels: int = 1, **sound: object) -> np.ndarray:
    chosen = data_of(Path("x"), sound).sound
    assert chosen is not None
    return waves.heard(values, rate, chosen, channels)


def test_stereo_mono_and_silence_at_the_end() -> None:
    two = np.stack([np.full(100, 0.5), np.full(100, -0.25)], 1)
    one = heard(two)
    assert one.shape == (1, 4096) and one.dtype == np.float32
    assert np.all(one[0, :100] == 0.125) and not one[0, 100:].any()
    assert np.array_equal(heard(two, channels=2)[:, 0], np.float32([0.5, -0.25]))
    assert np.array_equal(heard(two[:, :1], channels=2)[:, 0], np.float32([0.5, 0.5]))
    assert np.all(heard(np.full((10, 1), -32768, np.int16))[0, :10] == -1)
    assert np.all(heard(np.full((10, 1), 1 << 30, np.int32))[0, :10] == 0.5)


@pytest.mark.parametrize("rate", [44_100, 48_000, 22_050, 4000])
def test_resampling_keeps_a_tone(rate: int) -> None:
    wave = tone(440, rate=rate)
    found, expected = heard(wave[:, None], rate)[0], tone(440)
    assert np.sqrt(((found - expected)[200:-200] ** 2).mean() / (expected[200:-200] ** 2).mean()) < 0.01


def test_what_is_above_half_the_new_rate_is_gone() -> None:
    high = np.sin(2 * np.pi * 6000 * np.arange(22_050) / 44_100)
    assert np.abs(heard(high[:, None], 44_100)[0, 200:3800]).max() < 0.01


def test_loudness() -> None:
    wave = tone(level=0.1)[:, None]
    assert np.isclose(np.abs(heard(wave, loudness="peak")).max(), 1)
    assert np.isclose((heard(wave, loudness="rms").astype(float) ** 2).mean(), 0.01)
    assert np.abs(heard(wave)).max() < 0.1


def test_a_rate_without_a_simple_ratio() -> None:
    with pytest.raises(BadImage, match="no simple ratio"):
        heard(tone()[:, None], 44_099 * 2)


def test_wav_bytes_are_the_same_each_time_and_hold_all_types() -> None:
    for dtype in ("int16", "int32", "float32", "float64"):
        values = (1000 * np.stack([tone(), tone(660)], 1)).astype(dtype)
        content = waves.to_wav(values, 8000)
        back, rate = waves.from_wav(content)
        assert rate == 8000 and back.dtype == values.dtype and np.array_equal(back, values)
    with pytest.raises(BadImage, match=r"no \.wav member"):
        waves.from_wav(content[:30])


# ---- ingest ----------------------------------------------------------------------------------------------------------


def drums(tmp_path: Path, count: int = 12) -> Path:
    for i in range(count):
        write(tmp_path / "in" / ("low", "high")[i % 2] / f"{i:02d}.wav", tone(200 + 100 * i))
    return tmp_path / "in"


MODELS = {
    "autoencoder": {"model": {"kind": "kl"}, "training": {"steps": 1, "batch_size": 2}},
    "diffusion": {"backbone": {"kind": "dit"}, "training": {"steps": 1, "batch_size": 2}},
}


def ingested(tmp_path: Path, folder: Path, name: str = "out", **more: object) -> tuple[dict, Path, object]:
    from pipeline.artifacts import Store
    from pipeline.config import Config

    data = data_of(folder, split={"val_fraction": 0.3}, shard_size=4, **{"max_quarantine": 1.0, **more})
    run = {"name": "t", "root": str(tmp_path / "runs")}
    config = Config.model_validate({"run": run, "data": data.model_dump(mode="json"), **MODELS})
    with Store(tmp_path / "runs").write("ingest", name, {}, {}) as writer:
        artifact = writer.finish(ingest.run(config, {}, writer, Inline(), None))
    return artifact.summary, artifact.path, data


def test_ingest_and_what_models_read(tmp_path: Path) -> None:
    summary, folder, data = ingested(tmp_path, drums(tmp_path))
    assert sum(summary["images"].values()) == 12 and summary["classes"] == ["high", "low"]
    assert summary["sound"] == {"seconds": 6.144, "median": 0.512, "longest": 0.512, "rates": {"8000": 12}}
    assert "sounds" in ingest.headline(summary)
    index = Index.open(folder, "train")
    assert index.values == ValueMap.load(folder) and index.values and index.values.unit == "dB"
    first = read_image(index, 0, data)
    assert first.shape == (1, 16, 32) and first.dtype == np.float32 and first.min() >= -80 and first.max() > -20
    assert (folder / "contact_sheet.png").exists()


def test_bad_sounds_go_to_quarantine_with_a_reason(tmp_path: Path) -> None:
    source = drums(tmp_path) / "low"
    (source / "no.wav").write_bytes(b"no sound at all")
    (source / "cut.wav").write_bytes(write(source / "cut.wav", tone(1000)).read_bytes()[:3000])
    write(source / "long.wav", np.tile(tone(), 8))
    write(source / "silent.wav", np.zeros(4000))
    wrong = tone(1200)
    wrong[5], wrong[9] = np.nan, np.inf
    write(source / "nan.wav", wrong, subtype="FLOAT")
    write(source / "channels.wav", np.zeros((100, 9)))
    write(source / "rate.wav", tone(), rate=88_198)
    same, rate = soundfile.read(source / "00.wav", dtype="int16")
    write(source / "twin.flac", same, rate)
    write(source / "empty.wav", np.zeros(0))
    _, folder, _ = ingested(tmp_path, source.parent, source={"longest": 2.0})
    found = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert {entry["key"].removeprefix("low/"): entry["reason"] for entry in found} == {
        "no": "undecodable", "cut": "truncated", "long": "too long", "silent": "silent", "nan": "not finite",
        "channels": "channels", "rate": "sample rate", "twin": "duplicate", "empty": "empty",
    }  # fmt: skip


def test_a_single_sample_is_a_sound(tmp_path: Path) -> None:
    source = drums(tmp_path)
    write(source / "low" / "click.wav", np.array([0.5]))
    summary, _, _ = ingested(tmp_path, source)
    assert summary["quarantined"] == 0


def test_shards_are_the_same_bytes_and_a_restart_goes_on(tmp_path: Path) -> None:
    source = drums(tmp_path)
    one, folder, _ = ingested(tmp_path, source, "one")
    again, other, _ = ingested(tmp_path, source, "two")
    assert one["digest"] == again["digest"]
    for tar in folder.glob("*.tar"):
        assert tar.read_bytes() == (other / tar.name).read_bytes()


def test_fingerprints_follow_the_content_and_the_length(tmp_path: Path) -> None:
    source = drums(tmp_path, 4)
    first = source_fingerprint(data_of(source))
    assert source_fingerprint(data_of(source)) == first
    assert source_fingerprint(data_of(source, {"seconds": 0.256})) != first
    write(source / "low" / "00.wav", tone(777))
    assert source_fingerprint(data_of(source)) != first


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav")
    data = data_of(tmp_path)
    rows = sounds.list_sounds(data, Digests(None)).rows
    write(path, tone(1000))
    with pytest.raises(UserError, match="changed while ingest ran"):
        sounds.reader(data)(rows[0])


def test_keys_of_images_are_refused(tmp_path: Path) -> None:
    for more, said in (
        ({"size": 64}, "`sound.mels`"),
        ({"channels": 3}, "mono"),
        ({"augment": {"flip": True}}, "`augment`"),
        ({"source": {"kind": "folder"}}, "go together"),
    ):
        with pytest.raises(ValueError, match=said):
            data_of(tmp_path, **more)
