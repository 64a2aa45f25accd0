"""Buckets of images by the ratio of their sides, and an order in which every global batch is of one bucket.

Which batch comes next is a function of (seed, position) alone. An outer schedule says to which bucket batch n belongs
and the how manieth of that bucket it is; which samples those are is said by the bucket's own `Order` (order.py), with
lanes and windows. Which shapes there are is said by the config (`Data.shapes`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.data.order import Order, seeded
from pipeline.errors import UserError
from pipeline.schema.data import Data, Shape, text

Array = np.ndarray[Any, np.dtype[Any]]
SCHEDULES = 2  # outer epochs whose schedule is kept


def bucket_of(height: int, width: int, shapes: Sequence[Shape]) -> int:
    """The bucket of an image: the number of the shape with the nearest logarithm of the ratio of sides, the first of
    two that are as near."""
    ratio = math.log(width / height)
    return min(range(len(shapes)), key=lambda number: abs(math.log(shapes[number][1] / shapes[number][0]) - ratio))


def parsed(shape: str) -> Shape:
    """The shape that `text` gives. UserError for anything else."""
    sides = shape.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise UserError(f"--size {shape}: expected HEIGHTxWIDTH in pixels, such as 48x80")
    return int(sides[0]), int(sides[1])


def usual(shapes: Sequence[Shape], counts: Sequence[int], size: int) -> int:
    """The bucket that stands for all where one is shown: the square of `size`, if it has images, else the fullest."""
    full = max(range(len(shapes)), key=lambda number: counts[number])
    square = next((number for number, shape in enumerate(shapes) if tuple(shape) == (size, size)), full)
    return square if counts[square] else full


def check_filled(shapes: Sequence[Shape], counts: Sequence[int], held_out: Sequence[int], lane_count: int) -> None:
    """UserError, in one line, for a bucket that has images, but fewer training images than lanes."""
    poor = [b for b in range(len(shapes)) if counts[b] < lane_count and (counts[b] or held_out[b])]
    if not poor:
        return
    worst = min(poor, key=lambda b: counts[b])
    rich = [list(shapes[b]) for b in range(len(shapes)) if counts[b] >= lane_count]
    more = f" (and {len(poor) - 1} more buckets)" if len(poor) > 1 else ""
    keep = f"set data.buckets.shapes={rich}, " if rich else ""
    raise UserError(
        f"`data.buckets`: the bucket {text(shapes[worst])} has {counts[worst]} training images, fewer than the "
        f"{lane_count} lanes of a batch{more}: {keep}a smaller `max_ratio` or batch size, or fewer `data.lanes`"
    )


class BucketOrder:
    """The order of training samples in buckets. A sample has its number in its bucket.

    weights N_b: samples of each bucket, or as many places as they have in an epoch of a balanced order. Let B be the
    global batch. After e outer epochs bucket b has had floor((e N_b + o_b) / B) batches, with o_b drawn once from
    0 ... B-1: its share is exact to one batch, forever. Within an outer epoch the batches are in an order of their own.
    """

    def __init__(self, orders: Sequence[Order | None], batch: int, lane_count: int, seed: int) -> None:
        """`orders`: of each bucket, made with `bucket_seed`; None for one without samples."""
        self.orders, self.batch_size, self.lanes = list(orders), batch, lane_count
        self.weights = [order.samples if order else 0 for order in orders]
        self.samples = sum(self.weights)
        self._key = seeded(seed, "order/buckets")
        offsets = np.random.Generator(np.random.Philox(key=self._key)).integers(batch, size=len(self.orders))
        self._offsets = [int(offset) for offset in offsets]
        self._schedules: dict[int, tuple[Array, Array]] = {}

    def bucket(self, position: int) -> int:
        """The bucket of the batch at `position` (samples seen, a multiple of the global batch)."""
        return self._place(position)[0]

    def batch(self, position: int) -> Array:
        """Numbers in its bucket, int64 [B], of the samples of the batch at `position`."""
        return self.share(position, 0, 1)

    def share(self, position: int, rank: int, world: int) -> Array:
        """The part int64 [B/world] of the batch at `position` that `rank` reads, as `Order.share` has it."""
        bucket, number = self._place(position)
        order = self.orders[bucket]
        assert order is not None
        return order.share(number * self.batch_size, rank, world)

    def _place(self, position: int) -> tuple[int, int]:
        """Bucket of a batch, and how many batches that bucket had before."""
        if position < 0 or position % self.batch_size:
            raise UserError(
                f"position {position} is not a multiple of the batch size {self.batch_size}: with `data.buckets` a run "
                "goes on with the batch size that it began with"
            )
        n = position // self.batch_size
        epoch = self._epoch(n)
        bucket, before = self._schedule(epoch)
        within = n - sum(self.batches(epoch))
        return int(bucket[within]), int(before[within])

    def batches(self, epochs: int) -> list[int]:
        """Batches that each bucket has had after so many outer epochs."""
        pairs = zip(self.weights, self._offsets, strict=True)
        return [(epochs * weight + offset) // self.batch_size if weight else 0 for weight, offset in pairs]

    def _epoch(self, n: int) -> int:
        """The outer epoch of batch n: the last one before which there were n batches or fewer. By bisection."""
        low, high = 0, (n + 1 + len(self.weights)) * self.batch_size // self.samples + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if sum(self.batches(middle)) <= n else (low, middle)
        return low

    def _schedule(self, epoch: int) -> tuple[Array, Array]:
        """Of each batch of an outer epoch its bucket, and how many batches of that bucket came before: int64 [m]."""
        if epoch not in self._schedules:
            while len(self._schedules) >= SCHEDULES:
                del self._schedules[next(iter(self._schedules))]
            first = np.array(self.batches(epoch))
            count = np.array(self.batches(epoch + 1)) - first
            generator = np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, 1, epoch]))
            bucket = generator.permutation(np.repeat(np.arange(len(count)), count))
            before = np.empty(len(bucket), np.int64)
            places = np.argsort(bucket, kind="stable")  # bucket by bucket, each in the order in which it comes
            before[places] = np.concatenate([f + np.arange(c) for f, c in zip(first, count, strict=True)])
            self._schedules[epoch] = bucket, before
        return self._schedules[epoch]


def bucket_seed(seed: int, shape: Shape) -> int:
    """The seed of a bucket's own order."""
    return seeded(seed, f"order/bucket {text(shape)}")


def bucket_recipe(data: Data) -> dict[str, Any]:
    """What of the buckets decides on the stored images; nothing where there are none."""
    return {} if data.buckets is None else {"buckets": [list(shape) for shape in data.shapes]}
