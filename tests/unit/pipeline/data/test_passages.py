"""Texts as they are kept: cleaned, and cut at the ends of sentences."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.passages import clean, passages


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        ("a\u0301 cafe\u0301", "á café"),  # NFC
        ("\ufeffone\r\n two\t\tthree\u00a0four ", "one two three four"),
        ("a\x00b\x1bc\x7f", "abc"),
        ("e\x07\u0301", "é"),  # what is left is composed
        ("half \ud83d of a pair", "half of a pair"),
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),  # a joiner is no control character
        (" \n\x00 ", ""),
    ],
)
def test_clean(given_, kept):
    assert clean(given_) == kept
    assert clean(kept) == kept


def test_passages_end_where_sentences_do():
    text = 'He said: "Go." She went! Was it... so? It was.'
    assert passages(text, 100) == [text]
    assert passages(text, 26) == ['He said: "Go." She went!', "Was it... so? It was."]
    assert passages(text, 16) == ['He said: "Go."', "She went!", "Was it... so?", "It was."]
    assert passages("你好。再见。走吧。", 18) == ["你好。再见。", "走吧。"]
    assert passages("no end of a sentence at all", 12) == ["no end of a", "sentence at", "all"]
    assert passages("w" * 25 + " end", 10) == ["w" * 10, "w" * 10, "wwwww end"]
    assert passages("ü" * 10, 5) == ["üü"] * 5  # two bytes each: a character is never cut
    assert passages("", 16) == []


def test_rows_of_full_stops_take_no_time():
    assert passages("." * 100_000 + "x", 65536) == ["." * 65536, "." * 34464 + "x"]
    assert passages("Chapter 1 ..... 5. Next", 16) == ["Chapter 1 .....", "5. Next"]


@settings(max_examples=200, deadline=None)
@given(st.text(), st.integers(16, 64))
def test_nothing_is_lost_but_blanks(text, most):
    text = clean(text)
    found = passages(text, most)
    assert all(0 < len(passage.encode()) <= most and passage == passage.strip() for passage in found)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert passages(text, most) == found
