"""Classes met more or less often than the data have them, in an order that is still a function of (seed, position).

An epoch of a balanced order has as many places for a class as its share says. The places are laid out and shuffled by
`order.py` as if they were samples, with its lanes and windows; here a place becomes a sample: the places of a class,
counted through all epochs, go through its samples again and again, in another order each time. So no sample of a class
comes a second time before all others had their turn (but for what an epoch leaves out, fewer places than lanes).
The price is locality: the samples of a class are met in any order, and a rank reads in all shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.buckets import BucketOrder, bucket_seed, check_filled
from pipeline.data.latent_shards import LatentBuckets
from pipeline.data.order import Order, lanes, mix, permute, seeded
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.data.index import Index
    from pipeline.data.latent_shards import LatentIndex
    from pipeline.schema.data import Balance, Data

Array = np.ndarray[Any, np.dtype[Any]]
NO_CLASS = "(none)"


def training_order(
    index: Index | LatentIndex | LatentBuckets, data: Data, classes: Sequence[str], batch: int, seed: int
) -> Order | BucketOrder:
    """The order of the training samples of `index` in global batches of `batch`, balanced where `data.balance` says,
    in batches of one bucket each where there are buckets."""
    lane_count = data.lanes or lanes(batch)
    if data.buckets is not None:
        return _bucket_order(list(index.parts), data, classes, batch, seed)
    assert not isinstance(index, LatentBuckets)
    if data.balance is None:
        return Order(index.counts, batch, lane_count, seed)
    labels = index.labels()
    return BalancedOrder(labels, places(labels, data.balance, classes), batch, lane_count, seed)


def _bucket_order(
    parts: Sequence[Index | LatentIndex], data: Data, classes: Sequence[str], batch: int, seed: int
) -> BucketOrder:
    """Each bucket has its own order; with a balance, of as many places of a class as the class's share in all says."""
    lane_count = data.lanes or lanes(batch)
    labels = [part.labels() if data.balance else np.empty(0, np.int64) for part in parts]
    shares: list[dict[int, int]] = []  # places an epoch of a bucket, by class
    if data.balance is not None:
        wanted = places(np.concatenate(labels), data.balance, classes)
        total = {number: sum(int((own == number).sum()) for own in labels) for number in wanted}
        for own in labels:
            numbers, counts = np.unique(own, return_counts=True)
            here = {int(k): wanted[int(k)] * int(n) / total[int(k)] for k, n in zip(numbers, counts, strict=True)}
            shares.append({number: max(round(count), int(count > 0)) for number, count in here.items()})
    samples = [sum(share.values()) for share in shares] if shares else [len(part) for part in parts]
    check_filled(data.shapes, samples, [0] * len(samples), lane_count)
    orders: list[Order | None] = []
    for bucket, (shape, part) in enumerate(zip(data.shapes, parts, strict=True)):
        own_seed = bucket_seed(seed, shape)
        if not samples[bucket]:
            orders.append(None)
        elif shares:
            orders.append(BalancedOrder(labels[bucket], shares[bucket], batch, lane_count, own_seed))
        else:
            orders.append(Order(part.counts[part.counts > 0], batch, lane_count, own_seed))
    return BucketOrder(orders, batch, lane_count, seed)


def balance_recipe(data: Data) -> dict[str, Any]:
    """What of the balance decides on a result; nothing where there is none."""
    return {} if data.balance is None else {"balance": data.balance.model_dump(mode="json")}


def places(labels: Array, balance: Balance, classes: Sequence[str]) -> dict[int, int]:
    """Places an epoch by class number (-1: no class), about as many in all as there are samples.

    Share of class c: n_c^(1 - power) w_c over the sum of these. Raises UserError for a class that does not exist.
    """
    unknown = set(balance.weights) - {*classes, NO_CLASS}
    if unknown:
        known = ", ".join([*classes[:12], *(["..."] if len(classes) > 12 else []), NO_CLASS])
        raise UserError(f"`data.balance.weights`: {sorted(unknown)[0]!r} is no class; there are {known}")
    numbers, counts = np.unique(labels, return_counts=True)
    names = [classes[number] if number >= 0 else NO_CLASS for number in numbers]
    weights = np.array([balance.weights.get(name, 1.0) for name in names])
    shares = counts.astype(np.float64) ** (1 - balance.power) * weights
    if shares.sum() == 0:
        raise UserError("`data.balance.weights` leave out every class that has images: give one a weight above 0")
    wanted = np.maximum(np.rint(shares / shares.sum() * len(labels)), shares > 0).astype(np.int64)
    return {int(number): int(count) for number, count in zip(numbers, wanted, strict=True)}


class BalancedOrder(Order):
    """`Order` over places. Memory: a number a sample (the members of each class), 4 bytes up to 2^32 samples."""

    def __init__(self, labels: Array, places: dict[int, int], batch: int, lane_count: int, seed: int) -> None:
        """`labels`: class of each sample, int64 [N]. `places`: of each class an epoch. Else as `Order`."""
        super().__init__([sum(places.values())], batch, lane_count, seed)
        kind = np.uint32 if len(labels) < 2**32 else np.uint64
        self._members: Array = np.argsort(labels, kind="stable").astype(kind)  # samples by class, -1 first
        numbers, counts = np.unique(labels, return_counts=True)
        self._places: Array = np.array([places.get(int(number), 0) for number in numbers], np.int64)  # a class
        self._places_end = np.cumsum(self._places)
        self._counts = counts.astype(np.int64)
        self._first = np.cumsum(self._counts) - self._counts  # of a class in `_members`
        self._class_key = np.uint64(seeded(seed, "order/class"))

    def _place_to_sample(self, epoch: int, place: Array) -> Array:
        """The sample at each place of an epoch's sequence."""
        virtual = super()._place_to_sample(epoch, place)
        which = np.searchsorted(self._places_end, virtual, side="right")
        count = self._counts[which]
        # the how manieth place of its class this is, through all epochs; an int64 lasts for 9e18 samples
        turn = epoch * self._places[which] + virtual - (self._places_end[which] - self._places[which])
        key = mix(mix(self._class_key + which.astype(np.uint64)) + (turn // count).astype(np.uint64))
        members: Array = self._members[self._first[which] + permute(turn % count, count, key)]
        return members.astype(np.int64)
