"""Batches of tensors: what `order.py` says, read and drawn for, in this process or in reader processes.

A map-style dataset under PyTorch's DataLoader; what it maps is a whole request (position, sample indices, counters), so
that any number of workers gives the same batches in the same order. All random numbers are made here, a sample at a
time, keyed by position (training) or by sample (validation); the step that trains draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from models.conditioning import PLACES
from pipeline.data import transforms
from pipeline.data.buckets import BucketOrder
from pipeline.data.condition_shards import ConditionIndex
from pipeline.data.index import Index, read_pixels
from pipeline.data.latent_shards import LatentBuckets, LatentIndex
from pipeline.data.order import Draw, Order, draw_batch, seeded
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.schema.data import Data

Array = np.ndarray[Any, np.dtype[Any]]
Batch = dict[str, Any]
PREFETCH = 4  # batches that each reader process prepares ahead
GOLDEN = (5**0.5 - 1) / 2  # multiples modulo 1 are spread evenly: the times of validation


class Told(NamedTuple):
    """What samples are told besides their class: an index a bucket, the rows of what is not told, and the share of the
    samples from which each condition alone is withheld, by name; "class" may be among these. mirrored: of each view of
    the latents, whether maps are to be mirrored with it; none: no view is mirrored."""

    parts: Sequence[ConditionIndex]
    null: dict[str, Any]
    drops: dict[str, float]
    mirrored: tuple[bool, ...] = ()


class Request(NamedTuple):
    """A rank's share of one batch: where the global batch begins, samples int64 [n], the counters of their draws."""

    position: int
    indices: Array
    counters: Array
    weight: Array | None  # float32 [n], validation only: 0 where the sample pads
    bucket: int = 0  # of the whole batch; `indices` are numbers in it


@dataclass(frozen=True)
class TrainingRequests:
    """The requests of one rank from a position on, without end."""

    order: Order | BucketOrder
    rank: int
    world: int
    position: int

    def __iter__(self) -> Iterator[Request]:
        share = self.order.batch_size // self.world
        position = self.position
        while True:
            first = position + self.rank * share  # sample j of the batch has the counter position + j
            indices = self.order.share(position, self.rank, self.world)
            yield Request(position, indices, np.arange(first, first + share), None, self.order.bucket(position))
            position += self.order.batch_size


@dataclass(frozen=True)
class ValidationRequests:
    """Every sample once, bucket by bucket, in order, padded with weight 0 so that all ranks have equally many requests
    of one size (a bucket). samples: of each bucket."""

    samples: Sequence[int]
    batch: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[Request]:
        before = 0  # samples of the buckets before
        for bucket, samples in enumerate(self.samples):
            if not samples:
                continue
            share = min(-(-self.batch // self.world), -(-samples // self.world))
            for start in range(0, samples, share * self.world):
                indices = np.arange(start + self.rank * share, start + (self.rank + 1) * share)
                weight = (indices < samples).astype(np.float32)
                indices = np.minimum(indices, samples - 1)
                yield Request(before + start, indices, before + indices, weight, bucket)
            before += samples


def image_batches(
    index: Index,
    order: Order | BucketOrder,
    data: Data,
    seed: int,
    rank: int,
    world: int,
    position: int,
    latent: tuple[int, ...],
) -> Iterator[Batch]:
    """Training batches of images from `position` on, without end; a rank's share n = B / world.

    latent: shape of the latents of a square of data.size. images uint8 [n, C, H, W], of clips windows [n, C, T, H, W]
    (of other depths float32 in
    [-1, 1], by the data's `ValueMap`) cropped and flipped as configured,
    H and W those of the batch's bucket; noise float32 [n, *latent], or as the bucket's latents; index int64 [n], number
    in the bucket; skipped int64 [n], 1 where a corrupt sample was replaced (data.on_corrupt: skip); lost: [key, why] of
    these; position int.
    Raises UserError, naming shard and member, for a corrupt sample otherwise.
    """
    dataset = ImageBatches(index, data, seed, "autoencoder", latent, augment=True)
    return stream(dataset, TrainingRequests(order, rank, world, position), data.loader_workers)


def image_validation(
    index: Index, batch: int, data: Data, seed: int, rank: int, world: int, latent: tuple[int, ...]
) -> Iterator[Batch]:
    """The validation images once, centre-cropped; as `image_batches`, with weight float32 [n]."""
    dataset = ImageBatches(index, data, seed, "autoencoder/validation", latent, augment=False)
    return stream(dataset, ValidationRequests([len(part) for part in index.parts], batch, rank, world), 0)


def latent_batches(
    index: LatentIndex | LatentBuckets,
    order: Order | BucketOrder,
    data: Data,
    seed: int,
    rank: int,
    world: int,
    position: int,
    drop: float,
    null: int,
    told: Told | None = None,
    more: Mapping[str, bool] | None = None,
) -> Iterator[Batch]:
    """Training batches of latents from `position` on, without end; a rank's share n = B / world.

    moments float32 [n, 2C, *sides] of a drawn view; posterior and noise float32 [n, C, *sides], standard normal; u
    float64 [n], uniform in (0, 1); label int64 [n], `null` where the class is dropped or unknown; a row for each
    condition of `told`, by the key condition/NAME, its null where it is dropped; index int64 [n]; position int. All
    conditions together are dropped with probability `drop`, each alone with its own. more: names of further uniform
    draws float64, [n], or [n, *sides] where it says so. Of latents of unequal length also which places are there, bool
    [n, *sides], as a condition (`PLACES`).
    """
    dataset = LatentBatches(index, seed, "diffusion", drop, null, stratified=False, told=told, more=more)
    return stream(dataset, TrainingRequests(order, rank, world, position), data.loader_workers)


def latent_validation(
    index: LatentIndex | LatentBuckets,
    batch: int,
    data: Data,
    seed: int,
    rank: int,
    world: int,
    null: int | None = None,
    told: Told | None = None,
) -> Iterator[Batch]:
    """The validation latents once, first view, u spread evenly, no condition dropped, the first of several captions;
    with weight float32 [n].

    `null`: what stands for an unknown class; None keeps -1.
    """
    dataset = LatentBatches(
        index, seed, "diffusion/validation", 0.0, -1 if null is None else null, stratified=True, told=told
    )
    return stream(dataset, ValidationRequests([len(part) for part in index.parts], batch, rank, world), 0)


def told_in(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the samples of a batch are told: the rows of each condition, by name."""
    rows = {key.removeprefix("condition/"): rows for key, rows in batch.items() if key.startswith("condition/")}
    return {"class": batch["label"], **rows}


# ---- reading a request -----------------------------------------------------------------------------------------------


class ImageBatches(Dataset[Batch]):
    """Maps a request to a batch of images."""

    def __init__(
        self, index: Index, data: Data, seed: int, purpose: str, latent: tuple[int, ...], augment: bool
    ) -> None:
        self.parts, self.data, self.seed, self.purpose, self.augment = index.parts, data, seed, purpose, augment
        for part in (index, *self.parts):
            part.cache = data.cache
        channels, factor = latent[0], data.size // latent[1]  # with buckets, where latents have two sides
        start = [Draw("start", "uniform")] if data.clip else []  # of a clip's window
        self.shapes = [part.shapes[b] if part.shapes else None for b, part in enumerate(self.parts)]
        self.specs = [
            [
                Draw("top", "uniform"),
                Draw("left", "uniform"),
                Draw("flip", "uniform"),
                Draw("noise", "normal", latent if s is None else (channels, s[0] // factor, s[1] // factor)),
                *start,
            ]
            for s in self.shapes
        ]

    def __getitem__(self, request: Request) -> Batch:
        draws = draw_batch(self.seed, self.purpose, request.counters, self.specs[request.bucket])
        size, count = self.shapes[request.bucket] or self.data.shape, len(request.indices)
        values, clip = self.parts[request.bucket].values, self.data.clip
        frames = [clip.frames] if clip else []
        images = np.empty((count, self.data.channels, *frames, *size), np.uint8 if values is None else np.float32)
        skipped = np.zeros(count, np.int64)
        lost: list[list[str]] = []
        crop, flip = self.augment and self.data.augment.crop == "random", self.augment and self.data.augment.flip
        for row, i in enumerate(request.indices.tolist()):
            pixels, _, why = read_pixels(self.parts[request.bucket], i, self.data)
            if why:
                skipped[row] = 1
                lost.append([self.parts[request.bucket].key(i), why])
            if clip is not None:
                pixels = transforms.window(pixels, clip, draws["start"][row] if self.augment else None)
            top, left = (draws["top"][row], draws["left"][row]) if crop else (0.5, 0.5)
            cut = transforms.crop_flip(pixels, size, top, left, flip and draws["flip"][row] < 0.5)
            images[row] = cut if values is None else values.floats(cut)
        return {**batch_of(request, images=images, noise=draws["noise"], skipped=skipped), "lost": lost}


class LatentBatches(Dataset[Batch]):
    """Maps a request to a batch of latents' moments."""

    def __init__(
        self,
        index: LatentIndex | LatentBuckets,
        seed: int,
        purpose: str,
        drop: float,
        null: int,
        stratified: bool,
        told: Told | None = None,
        more: Mapping[str, bool] | None = None,
    ) -> None:
        self.parts, self.seed, self.purpose, self.drop, self.null = index.parts, seed, purpose, drop, null
        self.stratified, self.told, self.more = stratified, told, more or {}
        self.specs = []
        for part in self.parts:
            channels, *sides = part.shape
            latent = (channels // 2, *sides)
            self.specs.append(
                [
                    Draw("view", "integer", high=part.views),
                    Draw("posterior", "normal", latent),
                    Draw("u", "uniform"),
                    Draw("noise", "normal", latent),
                    Draw("drop", "uniform"),
                ]
            )

    def __getitem__(self, request: Request) -> Batch:
        draws = draw_batch(self.seed, self.purpose, request.counters, self.specs[request.bucket])
        view = 0 if self.stratified else draws["view"]
        moments, label = self.parts[request.bucket].read(request.indices, view)
        withheld = draws["drop"] < self.drop
        label[(label < 0) | withheld | self._alone("class", request)] = self.null
        u = draws["u"]
        if self.stratified:
            start = seeded(self.seed, self.purpose) / 2**63
            u = np.clip((start + (request.counters + 1) * GOLDEN) % 1.0, 2.0**-54, 1 - 2.0**-53)
        return batch_of(
            request,
            moments=torch.from_numpy(moments).float(),
            posterior=draws["posterior"],
            noise=draws["noise"],
            u=u,
            label=label,
            **self._places(request),
            **self._conditions(request, withheld, view),
            **{name: self._draw(name, "more", request, places) for name, places in self.more.items()},
        )

    def _places(self, request: Request) -> Batch:
        """Which places of the latents are there, where they are of unequal length."""
        part = self.parts[request.bucket]
        return {f"condition/{PLACES}": part.places(request.indices)} if part.unequal else {}

    def _conditions(self, request: Request, withheld: Array, view: Array | int) -> Batch:
        """The rows of each condition but the class, null where all are `withheld` (bool [n]) or this one is. view:
        number of the latents' view, of each or of all."""
        if self.told is None:
            return {}
        which: Array | float = 0.0
        if not self.stratified:  # one of several captions
            which = self._draw("caption", "which", request)
        turned = np.array(self.told.mirrored)[view] if self.told.mirrored else False
        batch: Batch = {}
        for name, rows in self.told.parts[request.bucket].read(request.indices, which, turned).items():
            rows[withheld | self._alone(name.partition("/")[0], request)] = self.told.null[name]
            batch[f"condition/{name}"] = rows
        return batch

    def _alone(self, name: str, request: Request) -> Array:
        """bool [n]: where this condition alone is withheld."""
        share = 0.0 if self.told is None or self.stratified else self.told.drops.get(name, 0.0)
        return self._draw(name, "drop", request) < share if share else np.zeros(len(request.indices), bool)

    def _draw(self, name: str, what: str, request: Request, places: bool = False) -> Array:
        """A uniform number [n], or one a place [n, *sides], of a stream of its own: one more or less changes no draw of
        the others."""
        spec = [Draw(what, "uniform", self.parts[request.bucket].shape[1:] if places else ())]
        return draw_batch(self.seed, f"{self.purpose}/{name}/{what}", request.counters, spec)[what]


def batch_of(request: Request, **values: Any) -> Batch:
    """A batch of these values, with index, position and, in validation, weight."""
    weight = {} if request.weight is None else {"weight": request.weight}
    tensors = {k: torch.as_tensor(v) for k, v in {**values, "index": request.indices, **weight}.items()}
    return {**tensors, "position": request.position}


# ---- processes -------------------------------------------------------------------------------------------------------


class _Reported(Dataset[Any]):
    """Hands a UserError over as a value: across processes the DataLoader would bury its one line in a traceback."""

    def __init__(self, dataset: Dataset[Batch]) -> None:
        self.dataset = dataset

    def __getitem__(self, request: Request) -> Batch | str:
        try:
            return self.dataset[request]
        except UserError as error:
            return str(error)


def stream(dataset: Dataset[Batch], requests: Iterable[Request], workers: int) -> Iterator[Batch]:
    """The batch of each request in turn, read here or by so many processes."""
    more: dict[str, Any] = {}
    if workers:
        more = {"multiprocessing_context": _forkserver(), "persistent_workers": True, "prefetch_factor": PREFETCH}
    loader = DataLoader(
        _Reported(dataset),
        batch_size=None,  # a request is a whole batch already
        sampler=requests,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        **more,
    )
    for batch in loader:
        if isinstance(batch, str):
            raise UserError(batch)
        yield batch


def _forkserver() -> Any:
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.data.loader"])  # torch is imported once, not by each reader
    return context
