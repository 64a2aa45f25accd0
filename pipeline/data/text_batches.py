"""Batches of passages as tokens, for the autoencoder: what `order.py` says, read, and drawn for, as in `loader.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch.utils.data import Dataset

from pipeline.data import tokens
from pipeline.data.loader import Batch, Request, TrainingRequests, ValidationRequests, batch_of, stream
from pipeline.data.order import Draw, draw_batch
from pipeline.data.passages import read_passage

if TYPE_CHECKING:
    from pipeline.data.buckets import BucketOrder
    from pipeline.data.index import Index
    from pipeline.data.order import Order
    from pipeline.schema.data import Data


class TextBatches(Dataset[Batch]):
    """Maps a request to a batch of tokens int64 [n, length], with standard normal noise float32 [n, *latent], level in
    (0, 1), float64 [n], which says how much of it there is, and index int64 [n]."""

    def __init__(
        self, index: Index, tokenizer: tokens.Tokenizer, length: int, seed: int, purpose: str, latent: tuple[int, ...]
    ) -> None:
        self.index, self.tokenizer, self.length, self.seed, self.purpose = index, tokenizer, length, seed, purpose
        self.spec = [Draw("noise", "normal", latent), Draw("level", "uniform", ())]

    def __getitem__(self, request: Request) -> Batch:
        draws = draw_batch(self.seed, self.purpose, request.counters, self.spec)
        texts = [read_passage(self.index, i) for i in request.indices.tolist()]
        return batch_of(request, tokens=tokens.rows(self.tokenizer, texts, self.length).tokens, **draws)


def text_batches(
    index: Index,
    order: Order | BucketOrder,
    data: Data,
    tokenizer: tokens.Tokenizer,
    length: int,
    seed: int,
    rank: int,
    world: int,
    position: int,
    latent: tuple[int, ...],
) -> Iterator[Batch]:
    """Training batches from `position` on, without end; a rank's share n = B / world."""
    dataset = TextBatches(index, tokenizer, length, seed, "autoencoder", latent)
    return stream(dataset, TrainingRequests(order, rank, world, position), data.loader_workers)


def text_validation(
    index: Index,
    batch: int,
    tokenizer: tokens.Tokenizer,
    length: int,
    seed: int,
    rank: int,
    world: int,
    latent: tuple[int, ...],
) -> Iterator[Batch]:
    """The held-out passages once; as `text_batches`, with weight float32 [n]."""
    dataset = TextBatches(index, tokenizer, length, seed, "autoencoder/validation", latent)
    return stream(dataset, ValidationRequests([len(index)], batch, rank, world), 0)
