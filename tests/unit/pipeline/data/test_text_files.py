"""Text as a source: files and tables to rows, classes, documents; what is no text, and why."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline.cluster.inline import Inline
from pipeline.data.index import Index
from pipeline.data.passages import read_passage
from pipeline.data.sources import source_fingerprint
from pipeline.data.text_files import list_text
from pipeline.errors import UserError
from pipeline.schema.data import Data
from pipeline.schema.text import TextSource
from pipeline.stages import ingest


def source(path: Path, **more: object) -> TextSource:
    return TextSource(kind="text", path=str(path), **more)


def data(path: Path, more: dict[str, object] | None = None, **own: object) -> Data:
    return Data.model_validate({"source": {"kind": "text", "path": str(path), **(more or {})}, **own})


def run(tmp_path: Path, one: Data, name: str = "out") -> tuple[dict, Path]:
    config = SimpleNamespace(run=SimpleNamespace(root=str(tmp_path / "root")), data=one)
    writer = SimpleNamespace(path=tmp_path / name, work=tmp_path / name / "work")
    return ingest.run(config, {}, writer, Inline(), None), writer.path  # type: ignore[arg-type]


def library(tmp_path: Path) -> Path:
    root = tmp_path / "books"
    for number in range(8):
        file = root / ("prose" if number % 2 else "verse") / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"Opening of book {number}.\nIts second line.\n\nAnother paragraph, {number}. Its end.\n")
    return root


def test_files_are_documents_their_folder_or_name_the_class(tmp_path):
    root = library(tmp_path)
    found = list_text(source(root, class_from="folder"))
    assert found.classes == ["prose", "verse"] and len(found.rows) == 16 and not found.bad
    first = found.rows[0]
    assert (first.key, first.label, first.together) == ("prose/1/000000", "prose", "prose/1")
    assert first.location == "Opening of book 1. Its second line." and first.attributes == {"document": "prose/1"}
    assert [row.label for row in list_text(source(root, class_from=r"(\d)\.txt$")).rows[:4]] == ["1", "1", "3", "3"]
    lines = list_text(source(root, unit="line"))
    assert len(lines.rows) == 17 and lines.left_out.json()["passages that were there before"][0] == 7
    assert len(list_text(source(root, unit="file")).rows) == 8
    assert len(list_text(source(root / "prose" / "1.txt")).rows) == 2


def test_tables_of_each_kind_give_the_same_rows(tmp_path):
    records = [{"text": f"A text, {i}. Its end.", "genre": "ab"[i % 2], "book": f"b{i // 3}"} for i in range(6)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (tmp_path / "t.csv").write_text(
        "text,genre,book\n" + "".join(f'"{r["text"]}",{r["genre"]},{r["book"]}\n' for r in records)
    )
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "t.parquet")
    listed = [
        list_text(source(tmp_path / f"t.{end}", label="genre", document="book")) for end in ("jsonl", "csv", "parquet")
    ]
    assert listed[0].rows == listed[1].rows == listed[2].rows
    assert [row.key for row in listed[0].rows][:4] == ["b0/000000", "b0/000001", "b0/000002", "b1/000000"]
    assert listed[0].classes == ["a", "b"]
    for end in ("jsonl", "csv", "parquet"):
        with pytest.raises(UserError, match="no column 'body'; there are text, genre, book"):
            list_text(source(tmp_path / f"t.{end}", column="body"))


def test_a_row_without_a_document_is_one_of_its_own(tmp_path):
    names = [1.0, None, float("nan"), 1.0]
    pq.write_table(pa.table({"text": list("abcd"), "book": names}), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"text": text, "book": book}) + "\n" for text, book in zip("abcd", names, strict=True))
    )
    (tmp_path / "t.csv").write_text("text,book\na,1\nb,\nc, \nd,1\n")
    for end, book, first in (("parquet", "1.0", 1), ("jsonl", "1.0", 2), ("csv", "1", 3)):
        rows = list_text(source(tmp_path / f"t.{end}", document="book")).rows
        expected = [book, *(f"t/{first + number:08d}" for number in range(2)), book]
        assert [row.together for row in rows] == expected
        assert [row.attributes["document"] for row in rows] == expected


def test_what_is_no_text_goes_to_quarantine_with_its_reason(tmp_path):
    root = library(tmp_path)
    (root / "bad.txt").write_bytes(b"A line.\n" + b"x" * 10_000_000 + b"\nGr\xfc\xdfe\n\x02\x01\nThe end.\n")
    found = list_text(source(root, unit="line"))
    assert [(entry["key"], entry["reason"]) for entry in found.bad] == [
        ("bad:line 2", "too long"), ("bad:line 3", "not UTF-8"), ("bad:line 4", "empty"),
    ]  # fmt: skip
    assert sum(row.together == "bad" for row in found.rows) == 2
    with pytest.raises(UserError, match=r"3 of 2[0-9] passages are unusable"):
        run(tmp_path, data(root, {"unit": "line"}), "refused")
    summary, folder = run(tmp_path, data(root, {"unit": "line"}, max_quarantine=0.2, split={"val_fraction": 0.3}))
    assert summary["quarantine_reasons"] == {"too long": 1, "not UTF-8": 1, "empty": 1}
    assert len((folder / "quarantine.jsonl").read_text().splitlines()) == 3


def test_a_file_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("A text.")
    (tmp_path / "b.txt").write_text("x" * 101)
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self) if self.name == "a.txt" else pytest.fail("read"))
    found = list_text(source(tmp_path, unit="file", longest=100, passage=64))
    assert [row.location for row in found.rows] == ["A text."]
    assert [(bad["key"], bad["detail"]) for bad in found.bad] == [("b", "101 bytes, `data.source.longest` is 100")]


def test_parquet_files_in_folders_that_a_cluster_wrote(tmp_path):
    for part in "ab":
        (tmp_path / part).mkdir()
        pq.write_table(pa.table({"text": [f"Text {part}."]}), tmp_path / part / "data.parquet")
    (tmp_path / "_SUCCESS").touch()
    rows = list_text(source(tmp_path)).rows
    assert [row.together for row in rows] == ["a/data/00000000", "b/data/00000000"]


def test_utf_16_is_no_text_of_other_letters(tmp_path):
    (tmp_path / "a.txt").write_bytes("Привет, мир.\n\nЕщё раз.".encode("utf-16"))
    found = list_text(source(tmp_path, unit="line"))
    assert not found.rows and {entry["reason"] for entry in found.bad} == {"not UTF-8"}
    with pytest.raises(UserError, match=r"holds no text \(3 texts cannot be used; a:line 1: not UTF-8"):
        source_fingerprint(data(tmp_path, {"unit": "line"}))


def test_what_was_found_in_a_table_is_said(tmp_path):
    (tmp_path / "t.csv").write_bytes("text;n\nCafé;1\n".encode("cp1252") + b"long " * 60_000 + b";2\n")
    found = list_text(source(tmp_path / "t.csv"))
    assert [row.location for row in found.rows] == ["Café"] and [entry["reason"] for entry in found.bad] == ["too long"]
    assert found.notes[0].startswith("t.csv is read as text in cp1252 with semicolons between columns; if")
    (tmp_path / "t.csv").write_text("text,text\na,b\n")
    with pytest.raises(UserError, match="'text' is the name of more than one column"):
        list_text(source(tmp_path / "t.csv"))


def test_shards_hold_the_text_and_a_document_is_in_one_split(tmp_path):
    root = library(tmp_path)
    (root / "prose" / "9.txt").write_text("Grüße — 你好 “yes” \U0001f600.\n\nAnd more.")
    one = data(root, {"class_from": "folder"}, shard_size=5, split={"val_fraction": 0.4})
    summary, folder = run(tmp_path, one)
    split = {name: Index.open(folder, name) for name in ("train", "val")}
    documents = {name: {index.meta(i)["document"] for i in range(len(index))} for name, index in split.items()}
    assert documents["train"] and documents["val"] and not documents["train"] & documents["val"]
    stored = {
        index.key(i): (read_passage(index, i), index.label(i)) for index in split.values() for i in range(len(index))
    }
    listed = list_text(one.source)
    assert stored == {row.key: (row.location, listed.classes.index(row.label)) for row in listed.rows}
    assert stored["prose/9/000000"][0] == "Grüße — 你好 “yes” \U0001f600."
    assert summary["text"]["bytes"] == sum(len(text.encode()) for text, _ in stored.values())
    assert summary["text"]["longest"] == max(len(text.encode()) for text, _ in stored.values())
    assert "channel_mean" not in summary and not (folder / "contact_sheet.png").exists()
    again, other = run(tmp_path, one, "again")
    assert again == summary and np.array_equal(*[(f / "train-00000.tar").read_bytes() for f in (folder, other)])


def test_the_fingerprint_is_of_the_text_and_not_of_its_place(tmp_path):
    root = library(tmp_path)
    first = source_fingerprint(data(root))
    root = root.rename(tmp_path / "elsewhere")
    assert source_fingerprint(data(root)) == first
    (root / "prose" / "1.txt").write_text("Opening of book 1. Its second line.\n\nAnother paragraph, 1. Its end.\n")
    assert source_fingerprint(data(root)) == first  # cleaned, it is the same
    (root / "prose" / "1.txt").write_text("Another.")
    assert source_fingerprint(data(root)) != first


def test_a_shard_that_is_damaged_is_named(tmp_path):
    _, folder = run(tmp_path, data(library(tmp_path), split={"val_fraction": 0.4}))
    tar = folder / "train-00000.tar"
    index = Index.open(folder, "train")
    offset, _ = index.place(0)
    content = bytearray(tar.read_bytes())
    content[offset] = 0xFF
    tar.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"shard train-00000.tar, member .*: is no UTF-8"):
        read_passage(Index.open(folder, "train"), 0)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"filters": [{"kind": "median"}]}, "`filters` is of images"),
        ({"augment": {"flip": True}}, "`augment` is of images"),
        ({"on_corrupt": "skip"}, "`on_corrupt` is of images"),
        ({"values": {"dtype": "uint8", "range": [0, 1]}}, "go together"),
    ],
)
def test_keys_of_images_are_refused(tmp_path, own, message):
    with pytest.raises(ValidationError, match=message):
        data(tmp_path, **own)


def test_what_is_no_source_is_one_line(tmp_path):
    (tmp_path / "a.pdf").write_text("")
    (tmp_path / "n.jsonl").write_text('{"text": 5}\n')
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "a.pdf", "none of .txt"),
        (tmp_path / "n.jsonl", "n.jsonl:1: column 'text' holds int"),
        (tmp_path / "none", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            list_text(source(path))
    with pytest.raises(UserError, match="holds no"):
        source_fingerprint(data(tmp_path / "empty"))
    for bad in ("(", "no group"):
        with pytest.raises(ValidationError, match="class_from"):
            source(tmp_path, class_from=bad)
    with pytest.raises(ValidationError, match="no text would be whole"):
        source(tmp_path, longest=100)
