"""Each kind of source is listed in a fixed order and identified by its content, not by where it lies."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.data import arrays, listing, sources, tars
from pipeline.errors import UserError
from pipeline.schema.data import Data


def data(**source):
    return Data(source=source)


def images(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(folder / name)


def test_folder(tmp_path):
    images(tmp_path / "a", ["cat/2.png", "cat/1.png", "dog/x.y.png", "top.png"])
    (tmp_path / "a" / "cat" / "notes.txt").write_text("no image")
    first = data(kind="folder", path=str(tmp_path / "a"))
    found = sources.open_listing(first)
    assert [(row.key, row.label) for row in found.rows] == [
        ("top", None),
        ("cat/1", "cat"),
        ("cat/2", "cat"),
        ("dog/x.y", "dog"),
    ]
    assert found.classes == ["cat", "dog"]
    before = sources.source_fingerprint(first)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert sources.source_fingerprint(data(kind="folder", path=str(tmp_path / "b"))) == before
    Image.new("RGB", (9, 9), (99, 0, 0)).save(tmp_path / "a" / "top.png")
    assert sources.source_fingerprint(first) != before


def test_csv_and_jsonl_say_the_same(tmp_path):
    images(tmp_path, ["i/1.png", "i/2.png"])
    rows = [
        {"file": "i/1.png", "kind": "10", "text": "one, two", "person": "a"},
        {"file": "i/2.png", "kind": "9", "text": "", "person": "b"},
        {"file": "i/3.png", "kind": "9", "text": "", "person": "c"},
    ]
    (tmp_path / "t.csv").write_text(
        "file,kind,text,person\n" + "\n".join(f'{r["file"]},{r["kind"]},"{r["text"]}",{r["person"]}' for r in rows)
    )
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    both = [
        data(kind="table", path=str(tmp_path / name), image="file", label="kind", caption="text")
        for name in ("t.csv", "t.jsonl")
    ]
    for one in both:
        found = sources.open_listing(one)
        assert [(r.key, r.label, r.caption, r.attributes) for r in found.rows] == [
            ("i/1", "10", "one, two", {"person": "a"}),
            ("i/2", "9", None, {"person": "b"}),
        ]
        assert found.classes == ["9", "10"] and found.missing == ["i/3.png"]
    assert sources.source_fingerprint(both[0]) == sources.source_fingerprint(both[1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "picture\nx.png\n", "t.csv:2: no column 'image'; there are picture"),
        ("t.csv", "image,a\nx.png\n", "t.csv:2: a row of more or fewer than 2 columns"),
        ("t.jsonl", "{oh}\n", "t.jsonl:1: not JSON"),
        ("t.txt", "", "neither .csv, .tsv, .jsonl nor .parquet"),
        ("t.csv", "image\n", "holds no images"),
        ("t.csv", "image\nno.png\n", "1 named file missing, such as no.png"),
    ],
)
def test_bad_tables(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        sources.open_listing(data(kind="table", path=str(tmp_path / name)))


def test_arrays(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 5, 4), np.uint8)
    labels = np.array([3, 1, 1, 0, 3, 1], np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels)
    (tmp_path / "i.idx").write_bytes(b"\0\0\x08\x03" + np.array([6, 5, 4], ">u4").tobytes() + pixels.tobytes())
    (tmp_path / "l.idx.gz").write_bytes(
        gzip.compress(b"\0\0\x08\x01" + np.array([6], ">u4").tobytes() + labels.tobytes())
    )
    npz = data(kind="arrays", path=str(tmp_path / "a.npz"))
    idx = data(kind="arrays", path=str(tmp_path / "i.idx"), labels=str(tmp_path / "l.idx.gz"))
    for one in (npz, idx):
        found = sources.open_listing(one)
        assert [row.label for row in found.rows] == ["3", "1", "1", "0", "3", "1"] and found.classes == ["0", "1", "3"]
        np.testing.assert_array_equal(sources.reader(one.source)(4), pixels[4])
    (tmp_path / "i.idx").write_bytes((tmp_path / "i.idx").read_bytes()[:-1])
    arrays._arrays.cache_clear()
    with pytest.raises(UserError, match=r"i\.idx is truncated"):
        sources.open_listing(idx)


@pytest.mark.parametrize(
    ("sizes", "more", "message"),
    [
        ([2, 5, 4], b"\0" * 5_000_000, "or longer than it says"),  # of which no more is unpacked than one byte
        ([65536] * 4, b"", "truncated"),
        ([6, 5], b"", "longer than it says"),
        ([6, 5, 5], b"", "truncated"),
    ],
)
def test_as_much_of_a_packed_array_is_read_as_it_says(tmp_path, sizes, more, message):
    head = bytes([0, 0, 8, len(sizes)]) + np.array(sizes, ">u4").tobytes()
    (tmp_path / "i.idx.gz").write_bytes(gzip.compress(head + bytes(120) + more))
    with pytest.raises(UserError, match=message):
        arrays.read_idx(str(tmp_path / "i.idx.gz"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": np.zeros(3)}, "no array `images`, only x"),
        ({"images": np.zeros((2, 4, 4))}, "type float64; expected uint8"),
        ({"images": np.zeros((2, 5, 4, 7), np.uint8)}, "expected .n, h, w."),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, "expected 2 whole numbers"),
    ],
)
def test_bad_arrays(tmp_path, given, message):
    np.savez(tmp_path / "a.npz", **given)
    arrays._arrays.cache_clear()
    with pytest.raises(UserError, match=message):
        sources.open_listing(data(kind="arrays", path=str(tmp_path / "a.npz")))


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    pixels, labels = arrays.read_arrays(data(kind="digits").source)
    expected = load_digits()
    np.testing.assert_array_equal(pixels, np.rint(expected.images * 255 / 16).astype(np.uint8))
    np.testing.assert_array_equal(labels, expected.target)


def test_a_second_run_reads_no_file_again(tmp_path, monkeypatch):
    images(tmp_path / "a", ["1.png", "2.png"])
    one = data(kind="folder", path=str(tmp_path / "a"))
    before = sources.source_fingerprint(one, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(listing, "sha256_file", lambda path: pytest.fail(f"{path} was read"))
        assert sources.source_fingerprint(one, tmp_path / "cache") == before


def test_tars_are_known_by_content_and_order(tmp_path):
    (tmp_path / "t-1.tar").write_bytes(b"b")
    (tmp_path / "t-0.tar").write_bytes(b"a")
    one = data(kind="webdataset", path=str(tmp_path / "t-*.tar"))
    before = sources.source_fingerprint(one)
    assert [tar.location for tar in sources.tar_digests(one.source, None)] == [
        str(tmp_path / f"t-{i}.tar") for i in (0, 1)
    ]
    (tmp_path / "classes.json").write_text('["x", "y"]')
    assert sources.source_fingerprint(one) != before and tars.tar_classes(one.source) == ["x", "y"]
    with pytest.raises(UserError, match="no file matches"):
        sources.source_fingerprint(data(kind="webdataset", path=str(tmp_path / "u-*.tar")))


def test_a_fingerprint_imports_nothing_heavy():
    code = (
        "import sys; from pipeline.config import Data; from pipeline.data import sources;"
        "sources.source_fingerprint(Data(source={'kind': 'digits'}));"
        "print([m for m in ('torch', 'ray', 'sklearn', 'PIL', 'fsspec', 'mlflow') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
