"""Replies ranked above random ones: the share by hand, a judge that learns which goes with which, too few of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import pairs
from pipeline.data.tokens import Bytes
from pipeline.evaluation import text_judge
from pipeline.evaluation.text_embeddings import Embedder
from pipeline.evaluation.text_replies import ranked
from pipeline.schema.stages import TextJudge

TOPICS = 12


class Products(torch.nn.Module):
    def forward(self, before, reply):
        return before @ reply.T


def test_the_share_by_hand():
    before, real = torch.eye(3), torch.eye(3)
    assert pairs.above(Products(), before, real, real) == 1
    assert pairs.above(Products(), before, real.roll(1, 0), real) == 0.5  # 0 against 0: ties
    assert pairs.above(Products(), before, -real, real) == 0
    assert pairs.above(Products(), before, torch.zeros(3, 3), real) == 0.5


def test_equal_replies_are_ties():
    torch.manual_seed(0)
    before, same = torch.randn(50, 8), torch.ones(50, 8)
    assert pairs.above(pairs.Pairs(8).eval(), before, same, same) == 0.5


def embedder() -> Embedder:
    """A vector of noise by text, with its number in it: replies have another base than what they are of."""
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(TOPICS, TOPICS)))[0]

    def of(texts):
        rows = []
        for text in texts:
            kind, topic, number = text.split()
            noise = np.random.default_rng(int(number) + 1000 * (kind == "b")).normal(size=TOPICS) * 0.1
            rows.append((np.eye(TOPICS)[int(topic)] + noise) @ (turned if kind == "b" else np.eye(TOPICS)))
        return np.array(rows) * TOPICS**0.5

    return Embedder("noise", of)


def test_a_judge_learns_which_reply_goes_with_what_was_said(tmp_path):
    said, answered = ([f"{kind} {i % TOPICS} {i}" for i in range(300)] for kind in "ab")
    before = [f"a {i % TOPICS} {500 + i}" for i in range(60)]
    real, other = ([f"b {(i + shift) % TOPICS} {700 + i}" for i in range(60)] for shift in (0, 5))
    arguments = (embedder(), (said, answered), before, {"real": real, "samples": other}, tmp_path, 0)
    found = ranked(*arguments)
    assert found["real"] > 0.9 > 0.6 > found["samples"]
    (kept,) = tmp_path.glob("pairs-*.safetensors")
    written = kept.stat().st_mtime_ns
    assert ranked(*arguments) == found and kept.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="2 held-out replies have a text before"):
        ranked(embedder(), (said, answered), ["", *before[:2]], {"real": real[:3]}, tmp_path, 0)


def test_the_autoregressive_judge_is_told_what_was_said(tmp_path):
    section, device = TextJudge(width=16, depth=1, heads=2, steps=3), torch.device("cpu")
    before, replies = ["a long text before", ""], ["so", "no"]
    how = (section, Bytes(), replies, 257, 8, tmp_path, 0, device)
    told, untold = text_judge.judge_of(*how, before), text_judge.judge_of(*how)
    assert told.config.prefix == 19 and untold.config.prefix == 0 and len(list(tmp_path.iterdir())) == 2
    rows = text_judge._prefix(Bytes(), ["abc", ""], 3)
    assert rows.tolist() == [[99, 100, 0], [0, 0, 0]]
    one, two = (text_judge.write(told, Bytes(), 2, 0, before=texts) for texts in (before, before[::-1]))
    assert len(one) == 2 and one != two
    assert text_judge.perplexity(told, Bytes(), replies, before) != text_judge.perplexity(
        told, Bytes(), replies, ["", ""]
    )
