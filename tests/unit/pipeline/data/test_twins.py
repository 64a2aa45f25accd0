"""One picture saved twice with other bytes is one image, on one side of the split; without such, nothing changes."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.cluster.inline import Inline
from pipeline.data import shards, transforms, twins
from pipeline.data.index import Index
from pipeline.schema.data import Data
from pipeline.stages import ingest


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (10, 12, 3), np.uint8))


def saved(seed, level=6):
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def run(tmp_path, out, source, cluster=None, **more):
    data = Data(source=source, size=8, shard_size=10, split={"val_fraction": 0.4}, max_quarantine=0.5, **more)
    writer = SimpleNamespace(path=tmp_path / out, work=tmp_path / out / "work")
    config = SimpleNamespace(run=SimpleNamespace(root=str(tmp_path)), data=data)
    ingest.run(config, {}, writer, cluster or Inline(), None)
    lines = (writer.path / "quarantine.jsonl").read_text().splitlines()
    return writer.path, {entry["key"]: (entry["reason"], entry["detail"]) for entry in map(json.loads, lines)}


def keys(folder):
    indices = (Index.open(folder, split) for split in ("train", "val"))
    return [{index.key(i) for i in range(len(index))} for index in indices]


def folder_with(tmp_path, name, copies):
    (tmp_path / name).mkdir()
    for i in range(30):
        (tmp_path / name / f"a{i:02}.png").write_bytes(saved(i))
    for i in copies:
        (tmp_path / name / f"b{i:02}.png").write_bytes(saved(i, level=0))
        picture(i).save(tmp_path / name / f"c{i:02}.webp", lossless=True)
    return {"kind": "folder", "path": str(tmp_path / name)}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_twins_of_a_folder(tmp_path, capsys):
    source = folder_with(tmp_path, "in", range(5, 9))
    out, quarantine = run(tmp_path, "out", source)
    assert quarantine == {f"{k}{i:02}": ("duplicate", f"the same pixels as a{i:02}") for i in range(5, 9) for k in "bc"}
    train, val = keys(out)
    assert train | val == {f"a{i:02}" for i in range(30)} and not train & val
    assert (
        f"ingest: 8 of 38 images are in quarantine (8 duplicate): {out / 'quarantine.jsonl'}" in capsys.readouterr().out
    )


def test_shards_that_hold_no_twin_are_written_once(tmp_path, monkeypatch):
    decoded = []
    real = transforms.decode

    def counted(content, *rest):
        decoded.append(rest[3:])
        return real(content, *rest)

    monkeypatch.setattr(transforms, "decode", counted)
    run(tmp_path, "out", folder_with(tmp_path, "in", []))
    assert decoded.count(("png",)) == 30 and decoded.count(()) == len(decoded) - 30  # these: of the contact sheet
    monkeypatch.undo()
    kept = run(tmp_path, "some", folder_with(tmp_path, "twins", [5]))[0]
    for name in ("train-00000.tar", "train-00001.tar"):  # the twins come last in the listing
        assert (kept / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def tars_with(tmp_path, names, copies):
    (tmp_path / names).mkdir()
    samples = [(f"a{i:02}.png", saved(i)) for i in range(20)] + [(f"b{i:02}.png", saved(i, 0)) for i in copies]
    for number, part in enumerate((samples[:12], samples[12:])):
        with open(tmp_path / names / f"{number}.tar", "wb") as file:
            writer = shards.TarWriter(file)
            for name, content in part:
                writer.add(name, content)
            writer.close()
    return {"kind": "webdataset", "path": str(tmp_path / names / "*.tar")}


def test_twins_in_tars(tmp_path):
    source = tars_with(tmp_path, "in", (3, 15))
    out, quarantine = run(tmp_path, "out", source)
    where = tmp_path / "in"
    assert quarantine == {
        f"{where}/1.tar: b03": ("duplicate", f"the same pixels as {where}/0.tar: a03"),
        f"{where}/1.tar: b15": ("duplicate", f"the same pixels as {where}/1.tar: a15"),
    }
    train, val = keys(out)
    assert train | val == {f"a{i:02}" for i in range(20)}


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


@pytest.mark.parametrize("tasks", range(1, 8))
def test_a_restart_at_any_task_ends_with_the_same_bytes(tmp_path, tasks):
    source = folder_with(tmp_path, "in", (1, 12, 25))
    whole, quarantine = run(tmp_path, "whole", source)
    try:
        run(tmp_path, "again", source, Interrupted(tasks))
    except KeyboardInterrupt:
        assert not (tmp_path / "again" / "index.json").exists()
    again, listed = run(tmp_path, "again", source)
    assert files(again) == files(whole) and listed == quarantine and len(listed) == 6


def test_a_finished_shard_without_digests_is_not_believed(tmp_path):
    """As an earlier version left it, half-way."""
    source = folder_with(tmp_path, "in", (1,))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "out", source, Interrupted(2))
    for path in (tmp_path / "out" / "work").glob("*.pixels.npy"):
        path.unlink()
    assert files(run(tmp_path, "out", source)[0]) == files(run(tmp_path, "whole", source)[0])


def test_find_takes_the_first_by_rank(tmp_path):
    one, two, none = b"1" * 16, b"2" * 15 + b"\0", twins.NONE
    places = {"a": [(one, "p"), (none, "q"), (two, "r")], "b": [], "c": [(two, "s"), (none, "t"), (one, "u")]}
    for name, found in places.items():
        twins.save(twins.path_of(name, tmp_path), found)
    paths = [twins.path_of(name, tmp_path) for name in "abc"]
    assert twins.find(paths) == [{}, {}, {0: "r", 2: "p"}]
    assert twins.find(paths, [[5, 0, 1], [], [3, 2, 4]]) == [{0: "u"}, {}, {0: "r"}]
    assert twins.find([]) == []
