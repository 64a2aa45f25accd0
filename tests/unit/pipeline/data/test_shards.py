"""Tars are written the same each time, WebDataset reads them, and unsafe or damaged ones are refused by name."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest

from pipeline.data import shards
from pipeline.errors import UserError

FILES = [("a/1.png", b"x" * 700), ("a/1.cls", b"3"), ("a/2.png", b""), ("b.seg.png", b"y" * 512)]


def write(path, files=FILES):
    with open(path, "wb") as file:
        writer = shards.TarWriter(file)
        members = [writer.add(name, data) for name, data in files]
        writer.close()
    return members


def test_scan_finds_what_was_written(tmp_path):
    members = write(tmp_path / "a.tar")
    assert shards.scan(tmp_path / "a.tar") == members
    content = (tmp_path / "a.tar").read_bytes()
    assert [content[m.offset : m.offset + m.length] for m in members] == [data for _, data in FILES]
    write(tmp_path / "b.tar")
    assert content == (tmp_path / "b.tar").read_bytes()


def test_long_and_unicode_names(tmp_path):
    files = [("ä" * 90 + ".png", b"1"), ("x" * 300 + ".png", b"2")]
    assert shards.scan(tmp_path / "a.tar") if write(tmp_path / "a.tar", files) else None
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [(m.name, tar.extractfile(m).read()) for m in tar] == files


def test_webdataset_reads_them(tmp_path):
    wds = pytest.importorskip("webdataset")
    write(tmp_path / "a.tar")
    read = list(wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [(s["__key__"], sorted(k for k in s if k[0] != "_")) for s in read] == [
        ("a/1", ["cls", "png"]),
        ("a/2", ["png"]),
        ("b", ["seg.png"]),
    ]
    assert [(key, sorted(group)) for key, group in shards.samples(shards.scan(tmp_path / "a.tar"))] == [
        ("a/1", ["cls", "png"]),
        ("a/2", ["png"]),
        ("b", ["seg.png"]),
    ]


def test_tars_of_other_writers(tmp_path):
    with tarfile.open(tmp_path / "pax.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        info = tarfile.TarInfo("folder/" + "ü" * 120 + ".png")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    (member,) = shards.scan(tmp_path / "pax.tar")
    assert (tmp_path / "pax.tar").read_bytes()[member.offset :][:3] == b"abc"


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png"])
def test_names_that_point_outside(tmp_path, name):
    write(tmp_path / "a.tar", [("ok.png", b"1"), (name, b"2")])
    with pytest.raises(UserError, match=rf"a\.tar: member '{name}' points outside"):
        shards.scan(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("x.png")
        info.type, info.linkname = kind, "y"
        tar.addfile(info)
    with pytest.raises(UserError, match=r"a\.tar: member 'x\.png' is a link"):
        shards.scan(tmp_path / "a.tar")


def test_compressed(tmp_path):
    write(tmp_path / "a.tar")
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    with pytest.raises(UserError, match=rf"repack it with `gzip -dc {path} > {tmp_path}/a\.tar`"):
        shards.scan(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:1000], "truncated in member a/1.png"),
        (lambda b: b[:1536], "after member a/1.png"),  # a cut between members
        (lambda b: b[:-1024], "after member b.seg.png"),  # the end is missing
        (lambda b: b[:1700] + b"\xff" * 40 + b[1740:], "damaged header after member a/1.png"),
        (lambda b: b"garbage" * 300, "damaged after its start"),
        (lambda b: b"", "damaged after its start|truncated after its start"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    write(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(damage((tmp_path / "a.tar").read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        shards.scan(tmp_path / "a.tar")
    assert str(tmp_path / "a.tar") in str(caught.value)


def test_missing(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        shards.scan(tmp_path / "no.tar")


def test_safe_keys_survive_webdatasets_split():
    keys = ["a.b/c.v2", "../x", "/abs", "a%2Eb", "plain"]
    safe = [shards.safe_key(key) for key in keys]
    assert len(set(safe)) == len(keys)
    for key in safe:
        assert shards.key_and_extension(f"{key}.png") == (key, "png")
        assert not key.startswith("/") and ".." not in key
