"""Tars of others: samples are what WebDataset calls so, and what its rule loses is counted."""

from __future__ import annotations

import io
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.cluster.inline import Inline
from pipeline.data import shards, sources, tars
from pipeline.data.index import Index
from pipeline.data.index_tars import samples_of
from pipeline.data.listing import LeftOut
from pipeline.errors import UserError
from pipeline.schema.data import Data
from pipeline.stages import ingest


def png(seed, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 9, 3), np.uint8)).save(buffer, form)
    return buffer.getvalue()


def make(path, members):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as out:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def labelled(*keys):
    """An image and a class under each key."""
    return [
        (f"{key}.{kind}", png(n) if kind == "png" else b"1") for n, key in enumerate(keys) for kind in ("png", "cls")
    ]


def run(tmp_path, pattern, **data):
    chosen = Data(source={"kind": "webdataset", "path": str(pattern)}, size=8, split={"val_fraction": 0.4}, **data)
    config = SimpleNamespace(run=SimpleNamespace(root=str(tmp_path)), data=chosen)
    writer = SimpleNamespace(path=tmp_path / "out", work=tmp_path / "out" / "work")
    summary = ingest.run(config, {}, writer, Inline(), None)
    keys = [Index.open(writer.path, s).key(i) for s in ("train", "val") for i in range(summary["images"][s])]
    return summary, sorted(keys)


def test_members_whose_names_are_no_utf8_are_indexed(tmp_path):
    make(tmp_path / "a.tar", labelled(*(f"\xe9{i}" for i in range(9))))
    _, keys = run(tmp_path, tmp_path / "a.tar")
    assert keys == [f"%E9{i}" for i in range(9)]


@pytest.mark.parametrize("folder", ["", "d/"])
def test_hidden_members_are_left_out_and_counted(tmp_path, capsys, folder):
    hidden = [(f"{folder}._{i}.{kind}", b"\0\5\x16\7") for i in range(9) for kind in ("png", "cls")]
    there = labelled(*(f"{folder}{i}" for i in range(9)))
    both = [member for pair in zip(hidden, there, strict=True) for member in pair]  # as `tar` of macOS has them
    make(tmp_path / "a.tar", [*both, *((f"__MACOSX/{folder}{i}.png", b"x") for i in range(9))])
    summary, keys = run(tmp_path, tmp_path / "a.tar")
    assert keys == [f"{folder}{i}" for i in range(9)] and summary["quarantined"] == 0
    assert summary["left_out"] == {"hidden members": [27, f"{folder}._0.png"]}
    assert summary["classes"] == ["0", "1"]
    assert f"ingest: not taken from the source: 27 hidden members (such as {folder}._0.png)" in capsys.readouterr().out
    assert "left_out" not in json.loads((tmp_path / "out" / "report.json").read_text())


def test_a_tar_packed_from_here_is_not_hidden(tmp_path):
    make(tmp_path / "a.tar", [(f"./{i}.png", png(i)) for i in range(9)])
    assert run(tmp_path, tmp_path / "a.tar")[1] == [f"./{i}" for i in range(9)]


def test_what_webdatasets_rule_loses_is_said(tmp_path):
    members = labelled(*(f"p{i}.{k}" for i in range(9) for k in (0, 1)))
    make(tmp_path / "a.tar", [*members, ("README", b"x"), ("__meta__", b"{}")])
    summary, keys = run(tmp_path, tmp_path / "a.tar")
    assert keys == [f"p{i}" for i in range(9)] and summary["classes"] == []
    counts = {reason.partition(":")[0]: count for reason, (count, _) in summary["left_out"].items()}
    assert counts == {
        "images more in a sample than the one that is read": 9,
        "members that end in .cls but are not `cls`, so that no class is read": 18,
        "members named __NAME__, which WebDataset skips": 1,
        "members without an extension, which belong to no sample": 1,
    }


def test_a_class_under_the_wrong_name_is_said(tmp_path):
    make(tmp_path / "a.tar", labelled(*(f"x{i}_0.5" for i in range(9))))
    summary, _ = run(tmp_path, tmp_path / "a.tar")
    ((reason, found),) = summary["left_out"].items()
    assert "not `cls`" in reason and found == [9, "x0_0.5.cls"]


def test_samples_are_those_of_webdataset(tmp_path):
    import webdataset

    names = [
        "a/1.png",
        "a/1.cls",
        "a/1.seg.PNG",
        "b.c/2.jpg",
        "b.c/2.json",
        "3.png",
        "3.txt",
        "1.png",
        "./4.jpg",
        "a/1.png",
    ]
    path = make(tmp_path / "a.tar", [(name, name.encode()) for name in names])
    theirs = [
        (sample["__key__"], {k: v.decode() for k, v in sample.items() if not k.startswith("__")})
        for sample in webdataset.WebDataset(str(path), shardshuffle=False, handler=webdataset.ignore_and_continue)
    ]
    ours = [
        (key, {extension: member.name for extension, member in members.items()})
        for key, members in shards.samples(shards.scan(path))
    ]
    assert ours == theirs and len(ours) == 6


def test_a_name_that_comes_twice_in_a_sample_counts_once(tmp_path):
    left_out = LeftOut()
    path = make(tmp_path / "a.tar", [("a.png", b"1"), ("a.png", b"22")])
    ((_, members, image),) = samples_of(path, "a.tar", left_out)
    assert image == members["png"] and image.length == 1
    assert left_out.json() == {"members whose name comes twice in a sample": [1, "a.png"]}


def test_a_jpeg_beside_an_avif_is_the_image_of_its_sample(tmp_path):
    path = make(tmp_path / "a.tar", [("a.avif", b"1"), ("a.jpg", b"2")])
    ((_, _, image),) = samples_of(path, "a.tar")
    assert image.name == "a.jpg"


def test_braces_are_expanded_as_webdataset_does(tmp_path):
    for name in ("train-000", "train-001", "train-003", "odd{1}"):
        make(tmp_path / f"{name}.tar", [("a.png", name.encode())])

    def found(text):
        return [path.removeprefix(f"{tmp_path}/") for path in tars.expand(f"{tmp_path}/{text}")]

    assert found("train-{000..001}.tar") == ["train-000.tar", "train-001.tar"]
    assert found("train-00{0,3}.tar") == ["train-000.tar", "train-003.tar"]
    assert found("odd{1}.tar") == ["odd{1}.tar"]  # a file of that name
    with pytest.raises(UserError, match=r"1 of the 4 tars of .* are missing, the first is .*train-002\.tar"):
        found("train-{000..003}.tar")
    with pytest.raises(UserError, match="write ranges as"):
        found("train-{000..003.tar")
    one, all_of_them = (
        sources.source_fingerprint(Data(source={"kind": "webdataset", "path": f"{tmp_path}/{text}"}))
        for text in ("train-{000..001}.tar", "train-00[01].tar")
    )
    assert one == all_of_them
