"""Perplexity of passages whose middle is written anew: what is taken out, and what it lies between."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.baselines import autoregressive as gpt
from pipeline.data import tokens
from pipeline.evaluation import text_infill
from tests.unit.pipeline.applications.text_models import model

PASSAGES = ["abcdefghijkl", "mnopqrstuvwxyz", "0123456789AB", "short"]


@pytest.fixture(scope="module")
def judge():
    """It knows the passages by heart."""
    rows = torch.from_numpy(tokens.rows(tokens.Bytes(), PASSAGES, 16).tokens)
    return gpt.train(gpt.Config(257, 16, 32, 1, 2), rows, 150, 8, 1e-2, 0, lambda *_: None).eval()


def test_a_middle_that_is_right_is_real_and_one_of_another_passage_is_not(judge, monkeypatch):
    writer, seen = model(told=False), []

    def knows(generator, given, asked):
        seen.extend(given)
        return tokens.rows(generator.tokenizer, PASSAGES[:3], 16).tokens

    monkeypatch.setattr(text_infill, "written", knows)
    found = text_infill.perplexity(writer, PASSAGES, judge, text_infill.request(writer, 4, 0, {}, steps=2))
    assert found["samples"] == found["real"] < 2 < 2 * found["real"] < found["random"]
    texts = ["".join("-" if token == 0 else chr(token - 1) for token in one.tokens) for one in seen]
    assert texts == ["abcd----ijkl----", "mnop-----vwxyz--", "0123----89AB----"]
    assert [np.flatnonzero(one.inner).tolist() for one in seen] == [[4, 5, 6, 7], [4, 5, 6, 7, 8], [4, 5, 6, 7]]
    assert [int(one.known.sum()) for one in seen] == [9, 10, 9]  # the END among them
    monkeypatch.undo()
    found = text_infill.perplexity(writer, PASSAGES, judge, text_infill.request(writer, 4, 0, {}, steps=2))
    assert found["samples"] > 2 * found["real"]  # of a model that is untrained


def test_of_short_passages_alone_there_is_none(judge):
    with pytest.raises(ValueError, match="no two of 2 held-out passages have 9 tokens or more"):
        text_infill.perplexity(model(told=False), ["short", "abcdefghijkl"], judge, {})
