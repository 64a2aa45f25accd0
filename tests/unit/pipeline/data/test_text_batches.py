"""Batches of passages: the same for any number of ranks and readers, and from any position on."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.cluster.inline import Inline
from pipeline.data import tokens
from pipeline.data.index import Index
from pipeline.data.order import Order
from pipeline.data.passages import read_passage
from pipeline.data.text_batches import text_batches, text_validation
from pipeline.schema.data import Data
from pipeline.stages import ingest

LATENT = (3, 4)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """An ingested text, a tokenizer, and the config of the data."""
    folder = tmp_path_factory.mktemp("text")
    lines = [f"Line {i} of a text, and its end{'!' * (i % 5)}" for i in range(60)]
    (folder / "lines").mkdir()
    for i, line in enumerate(lines):  # each a document
        (folder / "lines" / f"{i:02d}.txt").write_text(line)
    source = {"kind": "text", "path": str(folder / "lines")}
    data = Data.model_validate({"source": source, "shard_size": 16, "split": {"val_fraction": 0.3}})
    config = SimpleNamespace(run=SimpleNamespace(root=str(folder / "root")), data=data)
    writer = SimpleNamespace(path=folder / "out", work=folder / "out" / "work")
    ingest.run(config, {}, writer, Inline(), None)  # type: ignore[arg-type]
    tokens.train(lines, 290, folder / "tokenizer.json")
    return writer.path, tokens.BPE(folder / "tokenizer.json"), data


def stream(given, world=1, rank=0, position=0, **more):
    folder, tokenizer, data = given
    index = Index.open(folder, "train")
    order = Order(index.counts, 8, 4, 5)
    return text_batches(
        index, order, data.model_copy(update=more), tokenizer, 24, 5, rank, world, position, LATENT
    )  # fmt: skip


def same(one, two):
    assert one.keys() == two.keys() and one["position"] == two["position"]
    for name in ("tokens", "noise", "level", "index"):
        assert torch.equal(one[name], two[name])


def test_a_batch_holds_the_tokens_of_its_passages(given):
    batch = next(stream(given))
    assert batch["tokens"].shape == (8, 24) and batch["tokens"].dtype == torch.int64
    assert batch["noise"].shape == (8, *LATENT) and batch["noise"].dtype == torch.float32
    index = Index.open(given[0], "train")
    texts = [read_passage(index, int(i)) for i in batch["index"]]
    np.testing.assert_array_equal(batch["tokens"], tokens.rows(given[1], texts, 24).tokens)


@pytest.mark.parametrize("world", [2, 4])
def test_any_world_size_reads_the_same_batches(given, world):
    whole = list(islice(stream(given), 6))
    ranks = [list(islice(stream(given, world, rank), 6)) for rank in range(world)]
    for step, batch in enumerate(whole):
        joined = {
            name: torch.cat([rank[step][name] for rank in ranks]) for name in ("tokens", "noise", "level", "index")
        }
        same(batch, {**joined, "position": ranks[0][step]["position"]})


def test_it_goes_on_at_its_position_and_readers_change_nothing(given):
    whole = list(islice(stream(given), 6))
    same(whole[5], next(stream(given, position=5 * 8)))
    for one, two in zip(whole, islice(stream(given, loader_workers=1), 6), strict=True):
        same(one, two)


def test_validation_has_each_passage_once(given):
    folder, tokenizer, _ = given
    val = Index.open(folder, "val")
    for world in (1, 2):
        seen = [
            int(i)
            for rank in range(world)
            for batch in text_validation(val, 8, tokenizer, 24, 5, rank, world, LATENT)
            for i, weight in zip(batch["index"], batch["weight"], strict=True)
            if weight
        ]
        assert sorted(seen) == list(range(len(val)))
