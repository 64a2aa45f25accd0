"""Conditions on disk and as rows: what a value is, what lies in a shard, what a batch reads of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.conditioning.text import BEGIN, PADDING
from pipeline.data import captions, condition_values, latent_pool
from pipeline.data.condition_shards import KEY, ConditionIndex, write
from pipeline.errors import UserError

MOOD = {"kind": "categorical", "column": "mood"}
AGE = {"kind": "continuous", "column": "years", "range": [0.0, 50.0]}
WORN = {"kind": "multi_label", "column": "worn", "separator": ","}
ASKED: dict[str, Any] = {"attributes": {"mood": MOOD, "age": AGE, "worn": WORN}, "caption": {"tokens": 16}}
MODEL: dict[str, Any] = {  # the same as a model has them
    "mood": {**MOOD, "values": ["glad", "happy", "sad"]},
    "age": AGE,
    "worn": {**WORN, "values": ["beard", "hat", "scarf"]},
}
METAS = [
    {"mood": "sad", "years": 25, "worn": "hat, beard", "caption": "a sad man"},
    {"mood": "happy", "years": "50", "worn": ["hat"], "caption": ["first", "second", "third"]},
    {"mood": "", "years": None, "worn": None, "caption": None},
    {"mood": "glad", "years": float("nan"), "worn": [], "caption": "  two\n\tlines  "},
]


def keyed(metas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**meta, KEY: str(i)} for i, meta in enumerate(metas)]


def opened(pool: Path, shards: list[list[dict[str, Any]]], **more: Any) -> ConditionIndex:
    records = [write(pool, ASKED, keyed(metas)) for metas in shards]
    return ConditionIndex(pool, records, MODEL, {"tokens": 16}, **more)


def said(row: np.ndarray[Any, Any]) -> str:
    assert row[0] == BEGIN
    return bytes((row[1:][row[1:] != PADDING] - 1).astype(np.uint8)).decode()


def test_a_batch_reads_what_the_source_says_and_minus_one_or_the_last_for_what_is_missing(tmp_path: Path) -> None:
    rows = opened(tmp_path, [METAS]).read(np.arange(4))
    assert rows["mood"].tolist() == [2, 1, 3, 0]
    assert rows["age"].tolist() == [0.5, 1.0, -1.0, -1.0] and rows["age"].dtype == np.float32
    assert rows["worn"].tolist() == [[1, 1, 0], [0, 1, 0], [-1, -1, -1], [0, 0, 0]]
    assert [said(row) for row in rows["caption"]] == ["a sad man", "first", "", "two lines"]
    assert rows["caption"].shape == (4, 16)


def test_rows_are_those_that_a_request_for_the_same_values_makes(tmp_path: Path) -> None:
    rows = opened(tmp_path, [METAS]).read(np.arange(4))
    for i, meta in enumerate(METAS):
        for name, options in MODEL.items():
            wanted = condition_values.row(name, options, meta[options["column"]])
            assert np.array_equal(rows[name][i], wanted) and rows[name].dtype == np.asarray(wanted).dtype, (name, i)
    assert np.array_equal(rows["caption"][0], condition_values.caption_row({"tokens": 16}, "a sad man"))


def test_one_of_several_captions_is_drawn(tmp_path: Path) -> None:
    index = opened(tmp_path, [METAS])
    drawn = [said(index.read(np.array([1]), which)["caption"][0]) for which in (0.0, 0.34, 0.99)]
    assert drawn == ["first", "second", "third"]


def test_each_shard_has_a_list_of_values_of_its_own(tmp_path: Path) -> None:
    """So that a value that is new in one shard leaves the files of the others as they are."""
    index = opened(tmp_path, [METAS[:1], METAS[1:]])
    whole = opened(tmp_path, [METAS]).read(np.arange(4))
    parted = index.read(np.array([3, 0, 2, 1]))
    for name, rows in whole.items():
        assert np.array_equal(parted[name], rows[[3, 0, 2, 1]]), name


def test_a_shard_is_written_once_and_named_by_its_values(tmp_path: Path) -> None:
    first = write(tmp_path, ASKED, keyed(METAS))
    path = tmp_path / first["file"]
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    assert write(tmp_path, ASKED, keyed(METAS)) == first and path.stat().st_mtime_ns == written
    changed = write(tmp_path, ASKED, keyed([{**METAS[0], "caption": "another"}, *METAS[1:]]))
    assert changed["file"] != first["file"]
    latent_pool.entry_path(path).unlink()  # killed between the two files
    assert write(tmp_path, ASKED, keyed(METAS)) == first and path.read_bytes() == content
    path.write_bytes(content[:-1])
    assert write(tmp_path, ASKED, keyed(METAS)) == first and path.read_bytes() == content


def test_bytes_are_those_of_the_values(tmp_path: Path) -> None:
    """The text, an offset a caption and a sample, and 2% at most: a header."""
    metas = keyed([{"caption": f"{i} and fifty letters more of what is on this picture"} for i in range(2000)])
    record = write(tmp_path, {"attributes": {}, "caption": {"tokens": 128}}, metas)
    payload = sum(len(str(meta["caption"])) for meta in metas) + 2 * 8 * len(metas)
    assert record["bytes"] <= 1.02 * payload


def test_a_record_counts_what_was_told_and_what_was_cut(tmp_path: Path) -> None:
    long = "äöü" * 10
    record = write(tmp_path, ASKED, keyed([*METAS, {"caption": long}]))
    assert record["told"] == {"mood": 3, "age": 2, "worn": 3, "caption": 4}
    assert record["captions"] == 6 and record["cut"] == 1 and record["longest"] == 15
    assert record["columns"] == ["caption", "mood", "worn", "years"]
    index = ConditionIndex(tmp_path, [record], MODEL, {"tokens": 16})
    assert said(index.read(np.array([4]))["caption"][0]) == long[:7]  # no character in part


def test_latents_of_other_samples_have_their_conditions(tmp_path: Path) -> None:
    rows = opened(tmp_path, [METAS], rows=np.array([0, 0, 2, 1])).read(np.array([1, 3]))
    assert rows["mood"].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [(51, r"column 'years' of 0: 51 is not in the range from 0 to 50"), ("old", "'old' is no number")],
)
def test_a_value_that_does_not_fit_is_named(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write(tmp_path, ASKED, keyed([{"years": value}]))


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    record = write(tmp_path, ASKED, keyed(METAS))
    path = tmp_path / record["file"]
    path.write_bytes(b"\xff" * record["bytes"])
    with pytest.raises(UserError, match=r"damaged .*--rebuild conditions"):
        ConditionIndex(tmp_path, [record], MODEL, {"tokens": 16}).read(np.array([0]))
    path.unlink()
    with pytest.raises(UserError, match=r"missing .*--rebuild conditions"):
        ConditionIndex(tmp_path, [record], MODEL, {"tokens": 16}).read(np.array([0]))


@given(text=st.text(max_size=60), limit=st.integers(0, 40))
def test_a_text_is_cut_between_characters(text: str, limit: int) -> None:
    clean = captions.cleaned(text)
    found = captions.cut(clean, limit)
    assert len(found) <= limit
    if "\ufffd" not in clean and clean.isprintable():
        assert clean.startswith(found.decode())
    assert captions.cleaned(clean) == clean and "\n" not in clean


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mood", "hapy", "no value 'hapy'; did you mean 'happy'"),
        ("worn", "hat,boots", "no value 'boots'"),
        ("age", "-1", "-1 is not in the range"),
        ("age", "inf", "inf is not in the range"),
        ("age", [3], "is no number"),
    ],
)
def test_a_request_for_what_is_not_there_is_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        condition_values.row(name, MODEL[name], value)


def test_a_prompt_that_is_too_long_is_refused_and_none_is_the_empty_one() -> None:
    with pytest.raises(ValueError, match=r"a prompt of 100,000 bytes .* the model reads 15"):
        condition_values.caption_row({"tokens": 16}, "x" * 100_000)
    nothing = condition_values.null_rows(MODEL, {"tokens": 16})
    assert nothing["caption"].tolist() == [BEGIN] + 15 * [PADDING]
    assert nothing["mood"] == 3 and nothing["age"] == -1 and nothing["worn"].tolist() == [-1, -1, -1]


def test_half_a_character_in_a_caption_is_a_mark(tmp_path: Path) -> None:
    assert captions.cleaned("hi \ud83d") == "hi \ufffd"
    write(tmp_path, ASKED, keyed([{**METAS[0], "caption": "hi \ud83d"}]))
