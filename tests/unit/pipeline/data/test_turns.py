"""The text before a reply: which turns are in it, and what a source makes of it."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.text_files import list_text
from pipeline.data.turns import joined
from pipeline.errors import UserError
from pipeline.schema.text import TextSource


@pytest.mark.parametrize(
    ("turns", "most", "text"),
    [
        (["Hello", "Hi", "How are you?"], 40, "Hello // Hi // How are you?"),
        (["Hello", "Hi", "How are you?"], 20, "Hi // How are you?"),
        (["Hello", "Hi", "How are you?"], 13, "How are you?"),
        (["Hello", "Hi", "How are you?"], 10, "are you?"),
        (["How", "abcdefgh"], 3, "fgh"),
        (["grün"], 4, "rün"),
        (["", " ", "a\tb\nc", ""], 40, "a b c"),
        (["a // b", "http://x"], 40, "a / b // http://x"),
        ([], 5, ""),
        (["\ud800 so"], 40, "\ufffd so"),
    ],
)
def test_the_last_turns_that_fit(turns, most, text):
    assert joined(turns, most) == text


def test_another_measure_of_size():
    assert joined(["one two", "three", "four five"], 4, lambda text: len(text.split())) == "three // four five"


def test_replies_of_a_source(tmp_path):
    records = [
        {"context": ["Hello", "Hi"], "reply": "How are you?", "conversation": "a"},
        {"context": ["Hello", "Hi", "How are you?", "Well."], "reply": "How are you?", "conversation": "a"},
        {"context": ["Hello", "Hi"], "reply": "How are you?", "conversation": "b"},
        {"context": None, "reply": "How are you?", "conversation": "b"},
        {"context": [], "reply": "A first sentence. And one that is beyond it.", "conversation": "b"},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "t.parquet")
    how = {"kind": "text", "column": "reply", "before": "context", "document": "conversation", "before_bytes": 21}
    listed = [list_text(TextSource(path=str(tmp_path / f"t.{end}"), passage=20, **how)) for end in ("jsonl", "parquet")]
    assert listed[0].rows == listed[1].rows
    assert [(row.key, row.caption) for row in listed[0].rows] == [
        ("a/000000", "Hello // Hi"), ("a/000001", "How are you? // Well."), ("b/000000", None), ("b/000001", None),
    ]  # fmt: skip
    counts = listed[0].left_out.json()
    assert [count for count, _ in counts.values()] == [2, 1] and listed[0].rows[3].location == "A first sentence."


@pytest.mark.parametrize(
    ("context", "line"),
    [
        ('[{"text": "Hi"}]', "column 'context' holds dict, expected text or a list of it"),
        ('["Hi", null]', "column 'context' holds NoneType, expected text or a list of it"),
        ('["Hi", {}]', "column 'context' holds dict, expected text or a list of it"),
        ('["Hi", []]', "column 'context' holds list, expected text or a list of it"),
        ("0", "column 'context' holds int, expected text or a list of it"),
        ("false", "column 'context' holds bool, expected text or a list of it"),
        ("1" * 5000, "not JSON"),
    ],
    ids=["object", "null", "empty object", "list", "0", "false", "a long number"],
)
def test_what_is_no_text_before_is_named(tmp_path, context, line):
    (tmp_path / "t.jsonl").write_text(f'{{"reply": "So.", "context": {context}}}\n')
    with pytest.raises(UserError, match=f"t.jsonl:1: {line}"):
        list_text(TextSource(kind="text", path=str(tmp_path / "t.jsonl"), column="reply", before="context"))
