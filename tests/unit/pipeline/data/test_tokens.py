"""Tokens: any text there and back, the end, the same file of the same text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import tokens
from pipeline.errors import UserError

TEXTS = [f"The quick brown fox {i} jumps over the lazy dog. Grüße!" for i in range(50)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokenizer.json"
    tokens.train(TEXTS, 320, path)
    return path


@pytest.fixture(scope="module")
def both(file):
    return [tokens.Bytes(), tokens.BPE(file)]


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_comes_back(both, text):
    for tokenizer in both:
        found = tokens.rows(tokenizer, [text, "x"], 128)
        assert tokens.texts(tokenizer, found.tokens) == [text, "x"] and not found.cut.any()
        assert found.tokens.max() < tokenizer.size and found.tokens.min() == tokens.END


def test_a_row_is_cut_and_says_so(both):
    found = tokens.rows(both[0], ["abcdef", "ab", ""], 4)
    np.testing.assert_array_equal(found.tokens, [[98, 99, 100, 101], [98, 99, 0, 0], [0, 0, 0, 0]])
    assert found.cut.tolist() == [2, 0, 0] and [tokens.length_of(row) for row in found.tokens] == [4, 2, 0]
    assert tokens.texts(both[0], np.array([[98, 0, 99], [0x100, 98, 0]])) == ["a", "\N{REPLACEMENT CHARACTER}a"]


def test_bpe_is_shorter_than_bytes_and_the_same_each_time(both, file, tmp_path):
    lengths = [np.mean([len(ids) for ids in tokenizer.ids(TEXTS)]) for tokenizer in both]
    assert both[1].size == 320 and lengths[1] < 0.6 * lengths[0]
    tokens.train(iter(TEXTS), 320, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == file.read_bytes()


def test_what_is_no_tokenizer_of_the_model_is_one_line(file, tmp_path):
    with pytest.raises(UserError, match="missing"):
        tokens.load("bpe", 320, tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="is no tokenizer"):
        tokens.load("bpe", 320, tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="319 tokens, and the model knows 299"):
        tokens.load("bpe", 300, file)
