"""Ingest: every source becomes indexed shards; groups do not straddle; what is unusable is listed; restarts go on."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.cluster.inline import Inline
from pipeline.data import held_out, shards
from pipeline.data.index import Index
from pipeline.errors import UserError
from pipeline.schema.data import Data
from pipeline.stages import ingest


def run(tmp_path, name="out", cluster=None, **data):
    config = SimpleNamespace(run=SimpleNamespace(root=str(tmp_path / "root")), data=Data(**data))
    writer = SimpleNamespace(path=tmp_path / name, work=tmp_path / name / "work")
    return ingest.run(config, {}, writer, cluster or Inline(), None), writer.path


def noise(seed, size=(12, 10), mode="RGB"):
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else size[::-1]
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, np.uint8))


def png(seed):
    buffer = io.BytesIO()
    noise(seed).save(buffer, "PNG")
    return buffer.getvalue()


def table(folder, count=60):
    folder.mkdir(parents=True)
    lines = ["image,label,person,caption"]
    for i in range(count):
        noise(i).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{'cat' if i % 3 else 'dog'},p{i // 4},caption {i}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return {"kind": "table", "path": str(folder / "t.csv"), "label": "label", "caption": "caption"}


def make_tar(path, samples):
    with open(path, "wb") as file:
        writer = shards.TarWriter(file)
        for name, content in samples:
            writer.add(name, content)
        writer.close()


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != "index.json"}


def test_a_table_is_split_by_column_and_read_back(tmp_path):
    summary, folder = run(
        tmp_path,
        source=table(tmp_path / "in"),
        size=8,
        shard_size=10,
        split={"by": "column", "column": "person", "val_fraction": 0.3},
    )
    train, val = Index.open(folder, "train"), Index.open(folder, "val")
    assert len(train) + len(val) == 60 == sum(summary["images"].values())
    people = [{index.meta(i)["person"] for i in range(len(index))} for index in (train, val)]
    assert people[0] and people[1] and not people[0] & people[1]
    assert train.classes == ["cat", "dog"] == summary["classes"]
    assert train.counts[: len(train) // 10].tolist() == [10] * (len(train) // 10)
    for index in (train, val):
        for i in range(len(index)):
            number = int(index.key(i))
            assert index.meta(i)["caption"] == f"caption {number}"
            assert index.label(i) == (0 if number % 3 else 1) == index.labels()[i]
            assert Image.open(io.BytesIO(index.read(i))).size == (8, 8)
    assert not {train.key(i) for i in range(len(train))} & {val.key(i) for i in range(len(val))}
    assert Image.open(folder / "contact_sheet.png").size == (64, 64)
    with tarfile.open(folder / "train-00000.tar") as tar:
        names = tar.getnames()
    assert [Path(name).suffix for name in names[:3]] == [".png", ".cls", ".json"]


# Hypothesis takes seconds to learn all of Unicode, once a clone
NAMES = st.text("aZ09 _-./\\\n\0éß字🐈", min_size=1)


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.integers(1, 1000), min_size=2, max_size=30), st.integers(2, 8))
def test_folds_partition_groups_and_are_as_equal_as_can_be(groups, count):
    if len(groups) < count:
        with pytest.raises(UserError, match=f"{count} folds of {len(groups)} groups"):
            held_out.folds(groups, count)
        return
    found = held_out.folds(groups, count)
    assert found.keys() == groups.keys() and set(found.values()) == set(range(count))
    filled = [sum(groups[name] for name in groups if found[name] == fold) for fold in range(count)]
    assert max(filled) - min(filled) <= max(groups.values())
    assert held_out.folds(dict(reversed(groups.items())), count) == found


@pytest.mark.parametrize("tars", [False, True])
def test_over_its_folds_every_image_is_held_out_once_and_groups_stay_together(tmp_path, tars):
    if tars:
        (tmp_path / "tars").mkdir()
        for n in range(3):
            rows = [(f"{n}{i:02d}", json.dumps({"person": f"p{(7 * n + i) // 4}"}).encode()) for i in range(12)]
            files = [
                (f"{key}.{kind}", data) for key, meta in rows for kind, data in (("png", png(int(key))), ("json", meta))
            ]
            make_tar(tmp_path / "tars" / f"{n}.tar", files)
        source = {"kind": "webdataset", "path": str(tmp_path / "tars" / "*.tar")}
    else:
        source = table(tmp_path / "in", 36)
    held_out, people = [], []
    for fold in range(3):
        split = {"by": "fold", "column": "person", "folds": 3, "fold": fold}
        _, folder = run(tmp_path, f"out{fold}", source=source, size=8, split=split)
        train, val = Index.open(folder, "train"), Index.open(folder, "val")
        assert len(train) + len(val) == 36 and 8 <= len(val) <= 16
        held_out += [val.key(i) for i in range(len(val))]
        people.append({val.meta(i)["person"] for i in range(len(val))})
        assert not people[-1] & {train.meta(i)["person"] for i in range(len(train))}
    assert len(held_out) == len(set(held_out)) == 36
    assert sum(map(len, people)) == len(set.union(*people))


def test_fold_keys_are_in_the_recipe_of_folds_only(tmp_path):
    def split_of(**split):
        config = SimpleNamespace(data=Data(source={"kind": "digits"}, split=split))
        return ingest.recipe(config, tmp_path)["split"]

    assert split_of() == {"by": "key", "column": None, "val_fraction": 0.1}  # as before there were folds
    fold = {"by": "fold", "column": "label", "folds": 5, "fold": 0}
    assert split_of(**fold) == split_of(**fold, val_fraction=0.3) == fold
    for wrong in ({**fold, "fold": 5}, {"by": "fold", "column": "label"}, {"folds": 5, "fold": 1}):
        with pytest.raises(ValueError, match="fold"):
            Data(source={"kind": "digits"}, split=wrong)


def test_the_channel_statistics_are_those_of_the_training_images(tmp_path):
    summary, folder = run(tmp_path, source=table(tmp_path / "in"), size=8)
    index = Index.open(folder, "train")
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(index.read(i)))) for i in range(len(index))]) / 255
    np.testing.assert_allclose(summary["channel_mean"], pixels.mean((0, 1, 2)))
    np.testing.assert_allclose(summary["channel_std"], pixels.std((0, 1, 2)))


def test_unusable_images_are_listed_with_their_reason(tmp_path):
    source = table(tmp_path / "in", 40)
    folder = tmp_path / "in"
    (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
    (folder / "2.png").write_bytes(b"text")
    noise(3).save(folder / "3.png", "JPEG")
    noise(4, (200, 200)).save(folder / "4.png")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:-150])
    (folder / "6.png").unlink()
    summary, out = run(tmp_path, source=source, size=8, max_pixels=10_000, max_quarantine=0.2)
    listed = {
        entry["key"]: entry["reason"] for entry in map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    }
    assert listed == {
        "1": "duplicate",
        "2": "undecodable",
        "3": "wrongly named",
        "4": "oversized",
        "5": "truncated",
        "6.png": "missing",
    }
    assert summary["quarantined"] == 6 and sum(summary["images"].values()) == 34
    assert summary["quarantine_reasons"]["duplicate"] == 1
    with pytest.raises(UserError, match=r"6 of 40 images are unusable \(.*over data.max_quarantine = 0.1"):
        run(tmp_path, "strict", source=source, size=8, max_pixels=10_000, max_quarantine=0.1)


def test_tars_are_indexed_where_they_lie(tmp_path):
    samples = [
        (f"k{i}.{kind}", value) for i in range(40) for kind, value in (("cls", str(i % 2).encode()), ("png", png(i)))
    ]
    samples += [("again.png", png(3)), ("broken.jpg", b"no"), ("words.txt", b"no image")]
    make_tar(tmp_path / "a-0.tar", samples[:40])
    make_tar(tmp_path / "a-1.tar", samples[40:])
    before = {p: p.read_bytes() for p in tmp_path.glob("*.tar")}
    summary, folder = run(
        tmp_path,
        source={"kind": "webdataset", "path": str(tmp_path / "a-*.tar")},
        size=8,
        max_quarantine=0.1,
        split={"val_fraction": 0.3},
    )
    assert before == {p: p.read_bytes() for p in tmp_path.glob("*.tar")} and not list(folder.glob("*.tar"))
    assert summary["classes"] == ["0", "1"]
    assert summary["quarantine_reasons"] == {"duplicate": 1, "undecodable": 1, "no image": 1}
    seen = {}
    for split in ("train", "val"):
        index = Index.open(folder, split)
        for i in range(len(index)):
            seen[index.key(i)] = (
                index.read(i),
                index.label(i),
                held_out.held_out(index.key(i), 0.3) == (split == "val"),
            )
    assert seen == {f"k{i}": (png(i), i % 2, True) for i in range(40)}


def test_tars_with_their_own_split(tmp_path):
    for split, seeds in (("train", range(6)), ("val", range(6, 9))):
        make_tar(tmp_path / f"{split}-0.tar", [(f"{i}.png", png(i)) for i in seeds])
    source = {"kind": "webdataset", "path": str(tmp_path / "train-*.tar"), "val": str(tmp_path / "val-*.tar")}
    summary, folder = run(tmp_path, source=source, size=8, split={"by": "shards"})
    assert summary["images"] == {"train": 6, "val": 3} and summary["classes"] == []
    assert Index.open(folder, "val").key(0) == "6" and Index.open(folder, "val").label(0) == -1
    assert len({Index.open(folder, s).shard_digest(0) for s in ("train", "val")}) == 2


def test_a_class_out_of_range_and_unsafe_tars_are_user_errors(tmp_path):
    make_tar(tmp_path / "a.tar", [("x.png", png(0)), ("x.cls", b"2")])
    (tmp_path / "classes.json").write_text('["a", "b"]')
    source = {"kind": "webdataset", "path": str(tmp_path / "a.tar")}
    with pytest.raises(UserError, match=r"a\.tar: x\.cls: class 2 is out of range; classes.json names 2"):
        run(tmp_path, source=source, size=8)
    make_tar(tmp_path / "a.tar", [("../x.png", png(0))])
    with pytest.raises(UserError, match="points outside"):
        run(tmp_path, "other", source=source, size=8)


def test_an_empty_split_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no val images among 3"):
        run(tmp_path, source=table(tmp_path / "in", 3), size=8, split={"val_fraction": 1e-6})


class Interrupted:
    """A cluster whose work stops after some tasks."""

    def __init__(self, tasks):
        self.tasks = tasks

    def map(self, function, items, threads=1):
        for item in items:
            if self.tasks == 0:
                raise KeyboardInterrupt
            self.tasks -= 1
            yield function(item)


def test_a_restart_keeps_finished_shards_and_ends_with_the_same_bytes(tmp_path):
    options = {"source": table(tmp_path / "in"), "size": 8, "shard_size": 10}
    _, whole = run(tmp_path, "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "again", Interrupted(3), **options)
    again = tmp_path / "again"
    assert not (again / "index.json").exists()
    first = {p: p.stat().st_mtime_ns for p in again.glob("*.tar")}
    assert len(first) == 3
    (again / "train-00001.rows.npy").unlink()  # as if it had stopped before its proof: written again
    run(tmp_path, "again", **options)
    assert [p.name for p, time in first.items() if p.stat().st_mtime_ns != time] == ["train-00001.tar"]
    assert content(again) == content(whole)
    assert (again / "index.json").read_bytes() == (whole / "index.json").read_bytes()


def test_a_class_that_is_held_out_whole_and_the_quarantine_are_said(tmp_path, capsys):
    folder = tmp_path / "in"
    for name in ("many", "one"):
        (folder / name).mkdir(parents=True)
    for i in range(20):
        noise(i).save(folder / "many" / f"{i}.png")
    number = next(i for i in range(99) if held_out.held_out(f"one/{i}", 0.3))
    noise(99).save(folder / "one" / f"{number}.png")
    (folder / "many" / "3.png").write_bytes(b"broken")
    source = {"kind": "folder", "path": str(folder)}
    _, out = run(tmp_path, source=source, size=8, split={"val_fraction": 0.3}, max_quarantine=0.1)
    assert capsys.readouterr().out.splitlines() == [
        f"ingest: 1 of 21 images are in quarantine (1 undecodable): {out / 'quarantine.jsonl'}",
        "ingest: 1 class has no training image, and no model can learn it: 'one' (1 held out); give more images, or "
        "take them out",
    ]


def test_digits_need_nothing(tmp_path):
    summary, folder = run(tmp_path, source={"kind": "digits"}, size=8, channels=1)
    assert sum(summary["images"].values()) == 1797 and summary["classes"] == [str(i) for i in range(10)]
    assert Image.open(io.BytesIO(Index.open(folder, "train").read(0))).mode == "L"


def test_an_index_of_ten_million_samples_is_small(tmp_path):
    """10,000 shards of 1,000 samples: the sidecars are links to one, and samples of all of them are looked up."""
    from pipeline.data.index import write_index, write_rows

    write_rows(
        tmp_path / "one.rows.npy", [(i * 1024, 900, i % 10, 0, 0, 0, f"train{i:06d}".encode()) for i in range(1000)]
    )
    shard = {"sha256": "0" * 64, "rows_sha256": "1" * 64, "bytes": 10**6, "train": 1000, "val": 0}
    table = []
    for number in range(10_000):
        os.link(tmp_path / "one.rows.npy", tmp_path / f"shard-{number:05d}.rows.npy")
        table.append(
            {"name": f"shard-{number:05d}", "location": f"/data/of/some/length/shard-{number:05d}.tar", **shard}
        )
    write_index(tmp_path, [str(i) for i in range(10)], table)
    code = f"""
import psutil
from pipeline.data.index import Index
before = psutil.Process().memory_info().rss
index = Index.open({str(tmp_path)!r}, "train")
assert len(index) == 10_000_000
for i in range(0, len(index), 2003):
    assert index.key(i) == f"train{{i % 1000:06d}}" and index.label(i) == i % 10
print((psutil.Process().memory_info().rss - before) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100


def test_a_limit_takes_shares_of_tars_and_leaves_no_trace_where_there_is_none(tmp_path):
    for number in range(2):
        samples = [(f"{i:03d}.{e}", png(100 * number + i) if e == "png" else str(int(i < 5)).encode())
                   for i in range(25) for e in ("cls", "png")]  # fmt: skip
        (tmp_path / "in").mkdir(exist_ok=True)
        make_tar(tmp_path / "in" / f"{number}.tar", samples)
    source = {"kind": "webdataset", "path": str(tmp_path / "in" / "*.tar")}
    common = {"source": source, "size": 8, "split": {"val_fraction": 0.3}}
    whole, _ = run(tmp_path, "whole", **common)
    summary, folder = run(tmp_path, "some", limit=10, **common)
    assert sum(whole["images"].values()) == 50 and sum(summary["images"].values()) == 10
    by_class = summary["images_by_class"]
    assert sum(by_class[split].get("1", 0) for split in ("train", "val")) == 2 and summary["quarantined"] == 0
    again, other = run(tmp_path, "again", limit=10, **common)
    assert content(folder) == content(other) and again["digest"] == summary["digest"]
    index = Index.open(folder, "train")
    assert [index.read(i)[:4] for i in range(len(index))] == [b"\x89PNG"] * len(index)
    config = SimpleNamespace(data=Data(**common))
    assert "limit" not in ingest.recipe(config, tmp_path / "root")
    config.data = Data(**common, limit=10)
    assert ingest.recipe(config, tmp_path / "root")["limit"] == 10


def test_a_limited_table_is_the_same_each_time_and_what_a_listing_tells_is_kept(tmp_path, capsys):
    source = table(tmp_path / "in")
    lines = (tmp_path / "in" / "t.csv").read_text()
    (tmp_path / "in" / "t.csv").write_text(lines.replace(",cat,", ", cat ,").replace(",dog,", ",,"))
    summary, _ = run(tmp_path, source=source, size=8, limit=30)
    assert sum(summary["images"].values()) == 30 and summary["classes"] == ["cat"]
    assert sum(summary["images_by_class"][split].get("(none)", 0) for split in ("train", "val")) == 10
    assert len(summary["notes"]) == 3
    assert all(f"ingest: {note}" in capsys.readouterr().out for note in summary["notes"][:1])
    summary, _ = run(tmp_path, "named", source={**source, "empty_label": "dog"}, size=8)
    assert summary["classes"] == ["cat", "dog"] and "with an empty label: class 'dog'" in " ".join(summary["notes"])


def test_the_sources_own_split_decides(tmp_path):
    source = table(tmp_path / "in")
    lines = (tmp_path / "in" / "t.csv").read_text().splitlines()
    marks = ["split", *(("train", "train", "val", "TEST")[i % 4] for i in range(len(lines) - 1))]
    (tmp_path / "in" / "t.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(lines, marks, strict=True)))
    summary, folder = run(tmp_path, source=source, size=8, split={"by": "source"})
    assert summary["images"] == {"train": 30, "val": 15} and summary["notes"] == ["15 images for tests left out"]
    val = Index.open(folder, "val")
    assert {val.meta(i)["split"] for i in range(len(val))} == {"val"}
    (tmp_path / "in" / "t.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match="has no split of its own"):
        run(tmp_path, "other", source=source, size=8, split={"by": "source"})
    with pytest.raises(ValueError, match="for tables and arrays"):
        Data(source={"kind": "digits"}, split={"by": "source"})
