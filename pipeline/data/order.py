"""Which sample comes next, and with which random numbers: pure functions of (seed, position).

A position is the number of samples seen. The batch at a position is the same for every world size, every number of
loader workers and every accumulation, so a resumed run needs nothing but its position. Reading samples is the
loader's business (`loader.py`); this file deals in numbers only. `balance.py` puts another order on top, in which rare
classes come more often, `buckets.py` one for images of several shapes.

The global batch of B samples is made of L lanes, B/L samples each. An epoch permutes *units* (shards, or runs of
consecutive samples), turns the sequence by a random rotation, cuts it into L stretches of floor(N/L) samples, one a
lane, and shuffles each stretch within windows. The N mod L samples left over are others in each epoch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]

# Let k = B/L. Where a unit holds one class, k samples of a window of c units repeat a unit with chance 1/c a pair, so
# the mean chi-square of a batch's class counts exceeds a full shuffle's by (k - 1)/c; a lane holds U/L units, so U of
# them bound c. 32 instead of the 20 that 1.05 needs leaves room for unequal units.
UNITS_PER_LANE = 8
UNITS_PER_EXTRA_SAMPLE = 32
ROUNDS = 6  # of the Feistel network; 4 are already pseudo-random in theory (Luby and Rackoff, 1988)
BLOCK = 16384  # samples whose order is computed at once


def lanes(batch: int, limit: int = 256) -> int:
    """The default number of lanes: the largest divisor of the global batch up to `limit`."""
    return next(count for count in range(min(batch, limit), 0, -1) if batch % count == 0)


def largest_world(lane_count: int, available: int) -> int:
    """The largest world size up to `available` that divides the number of lanes."""
    return lanes(lane_count, available)


def check_world(world: int, lane_count: int, batch: int) -> None:
    """Refuse a world size that does not divide the lanes, naming the nearest world size and global batch that fit."""
    if world > 0 and lane_count % world == 0 and batch % lane_count == 0:
        return
    divisors = [count for count in range(1, lane_count + 1) if lane_count % count == 0]
    nearest_world = min(divisors, key=lambda count: abs(count - world))
    size, lanes_of_it = nearest_batch(batch, world)
    raise UserError(
        f"{world} ranks do not fit a global batch of {batch} in {lane_count} lanes (ranks must divide lanes, lanes the "
        f"batch): use {nearest_world} ranks, or a batch size of {size} with lanes: {lanes_of_it}"
    )


def nearest_batch(batch: int, world: int) -> tuple[int, int]:
    """The global batch nearest to `batch` whose default lanes `world` ranks divide, and these lanes."""
    limit = max(256, world)
    fits = (size for gap in range(batch + world) for size in (batch - gap, batch + gap) if size > 0)
    size = next((size for size in fits if lanes(size, limit) % max(world, 1) == 0), world)
    return size, lanes(size, limit)


def units_wanted(batch: int, lane_count: int) -> int:
    """How many units an epoch needs at least; shards are units where there are as many."""
    return max(UNITS_PER_LANE * lane_count, UNITS_PER_EXTRA_SAMPLE * (batch - lane_count))


def units_a_window(units: int, batch: int, lane_count: int) -> int:
    """How many units a lane's window holds at least."""
    # Two samples of one unit that shared a batch share one again with chance k/window. Among the pairs of a batch
    # these are so few that the ratio to chance grows by U / (L c)^2 only: c >= sqrt(10 U) / L keeps it at 1.1.
    again = math.ceil(math.sqrt(10 * units) / lane_count)
    return max(4, UNITS_PER_EXTRA_SAMPLE * (batch // lane_count - 1), again)


def shards_at_once(shards: int, batch: int, lane_count: int) -> int:
    """Into how many shards (of about equal numbers of samples) the windows of all lanes reach at a time, at most."""
    if shards < units_wanted(batch, lane_count):
        return shards  # units are runs of samples, and a window's runs come from anywhere
    stretch = shards / lane_count  # in shards, as is the window
    window = stretch / max(1, stretch // units_a_window(shards, batch, lane_count))
    return min(shards, lane_count * (math.ceil(window) + 1))  # begins and ends within a shard


class Order:
    """The order of training samples. Samples are numbered through all shards: shard 0 holds 0 ... counts[0] - 1.

    Memory is O(units): windows are shuffled by a keyed permutation that needs no table.
    """

    def __init__(self, counts: Sequence[int] | Array, batch: int, lane_count: int, seed: int) -> None:
        """`counts`: samples a shard. `batch`: the global batch, a multiple of `lane_count`.

        Raises UserError if there are fewer samples than lanes.
        """
        shards = np.asarray(counts, dtype=np.int64)
        total = int(shards.sum())
        if batch % lane_count:
            raise UserError(f"data.lanes is {lane_count}, which does not divide the batch size {batch}: use a divisor")
        if total < lane_count:
            raise UserError(
                f"{total} training samples are fewer than the {lane_count} lanes of a batch of {batch}: "
                "give more samples, a smaller batch size, or fewer data.lanes"
            )
        self.samples, self.batch_size, self.lanes, self.seed = total, batch, lane_count, seed
        self.per_lane = batch // lane_count  # k
        self.stretch = total // lane_count  # samples a lane reads in an epoch
        wanted = units_wanted(batch, lane_count)
        if len(shards) >= wanted:
            self._starts = np.cumsum(shards) - shards
        else:
            self._starts = np.arange(0, total, max(1, total // wanted), dtype=np.int64)
        self._sizes = np.diff(self._starts, append=total)
        units = len(self._sizes)
        window_units = units_a_window(units, batch, lane_count)
        self.windows = max(1, self.stretch * units // (window_units * total))  # a lane and an epoch
        self._key = _key(seed, "order")
        self._epochs: dict[int, tuple[Array, Array, int]] = {}
        self._block: tuple[tuple[int, int, int], Array] | None = None

    def batch(self, position: int) -> Array:
        """Global sample indices, int64 [B], of the batch at `position` (a multiple of the number of lanes)."""
        return self.share(position, 0, 1)

    def bucket(self, position: int) -> int:
        """The bucket of the batch at `position`: here there is one (several: buckets.py)."""
        return 0

    def share(self, position: int, rank: int, world: int) -> Array:
        """The part int64 [B/world] of the batch at `position` that `rank` reads: lanes rank*L/world and on."""
        if position < 0 or position % self.lanes:
            raise ValueError(f"position {position} is not a multiple of the {self.lanes} lanes")
        check_world(world, self.lanes, self.batch_size)
        count = self.lanes // world
        offset = position // self.lanes
        steps = max(1, min(BLOCK // self.batch_size, self.stretch // self.per_lane)) * self.per_lane
        at = offset % steps
        if at + self.per_lane > steps:  # not on this batch size's grid (a run went on with another batch size)
            return self._samples(rank * count, count, offset, self.per_lane).reshape(-1)
        key = (rank * count, count, offset // steps)
        if self._block is None or self._block[0] != key:
            self._block = key, self._samples(rank * count, count, offset - at, steps)
        return self._block[1][:, at : at + self.per_lane].reshape(-1)  # lane-major: j = lane*k + i

    def _samples(self, first: int, count: int, offset: int, steps: int) -> Array:
        """Indices [count, steps] of lanes first ... first+count at offsets offset ... offset+steps of their streams."""
        lane = np.arange(first, first + count, dtype=np.int64)[:, None]
        offsets = np.arange(offset, offset + steps, dtype=np.int64)
        parts = []
        for epoch in range(offset // self.stretch, (offset + steps - 1) // self.stretch + 1):
            within = offsets[offsets // self.stretch == epoch] - epoch * self.stretch  # [m]
            # Window i is [i*M//n, (i+1)*M//n) for n windows on a stretch of M samples.
            window = ((within + 1) * self.windows - 1) // self.stretch
            begin = window * self.stretch // self.windows
            size = (window + 1) * self.stretch // self.windows - begin
            key = mix(mix(mix(self._key[0] + np.uint64(epoch)) + lane.astype(np.uint64)) + window.astype(np.uint64))
            place = begin + permute(within - begin, size, key)  # [count, m]
            parts.append(self._place_to_sample(epoch, lane * self.stretch + place))
        return np.concatenate(parts, axis=1)

    def _place_to_sample(self, epoch: int, place: Array) -> Array:
        """The sample at each place of an epoch's sequence of permuted units."""
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:
                del self._epochs[next(iter(self._epochs))]
            generator = np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, 0, epoch]))
            unit_order = generator.permutation(len(self._sizes))
            self._epochs[epoch] = unit_order, np.cumsum(self._sizes[unit_order]), int(generator.integers(self.samples))
        unit_order, ends, rotation = self._epochs[epoch]
        turned = (place + rotation) % self.samples
        unit = np.searchsorted(ends, turned, side="right")
        result: Array = self._starts[unit_order[unit]] + turned - (ends[unit] - self._sizes[unit_order[unit]])
        return result


def permute(x: Array, size: Array, key: Array) -> Array:
    """A keyed pseudo-random permutation of 0 ... size-1, element by element, without a table.

    A Feistel network on Z_a x Z_b with a*b >= size, walking on where a result lies outside (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002). `x`, `size` int64 and `key` uint64 broadcast together.
    """
    x, size, key = np.broadcast_arrays(x, size, key)
    a = np.ceil(np.sqrt(size)).astype(np.int64)
    b = -(-size // a)
    result = _feistel(x, a, b, key)
    while (outside := result >= size).any():
        result[outside] = _feistel(result[outside], a[outside], b[outside], key[outside])
    return result


def _feistel(x: Array, a: Array, b: Array, key: Array) -> Array:
    left, right = x // b, x % b  # in Z_a, Z_b
    for number in range(ROUNDS):
        if number % 2 == 0:
            left = (left + _hash(key, number, right)) % a
        else:
            right = (right + _hash(key, number, left)) % b
    result: Array = left * b + right
    return result


def _hash(key: Array, number: int, half: Array) -> Array:
    mixed: Array = mix(key + np.uint64((number + 1) << 40) + half.astype(np.uint64))
    return (mixed >> np.uint64(33)).astype(np.int64)


def mix(x: Any) -> Any:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014), on uint64."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Draw:
    """One random quantity of a sample: normal float32, uniform float64 in (0, 1), or integer int64 in [0, high)."""

    name: str
    kind: str  # normal | uniform | integer
    shape: tuple[int, ...] = ()
    high: int = 0


def draws(seed: int, purpose: str, counter: int, spec: Sequence[Draw]) -> dict[str, Array]:
    """The random numbers of one sample: a pure function of (seed, purpose, counter, spec)."""
    return {name: values[0] for name, values in draw_batch(seed, purpose, [counter], spec).items()}


def draw_batch(seed: int, purpose: str, counters: Sequence[int] | Array, spec: Sequence[Draw]) -> dict[str, Array]:
    """The draws of many samples, stacked [n, *shape]; each row depends on its own counter alone.

    numpy's Philox with key (seed, purpose); a sample's counter is the highest word, so that its 2^192 values are its
    own. The spec's order is the order of drawing: append new draws, never reorder.
    """
    kinds = {"normal": np.float32, "uniform": np.float64, "integer": np.int64}
    result: dict[str, Array] = {draw.name: np.empty((len(counters), *draw.shape), kinds[draw.kind]) for draw in spec}
    bits = np.random.Philox(key=_key(seed, purpose))
    generator = np.random.Generator(bits)
    state: Any = bits.state  # set anew for each sample: a tenth of the time of a new generator
    words = state["state"]["counter"]
    words[:] = 0
    wanted = [(draw.kind, draw.shape == (), draw.high, result[draw.name]) for draw in spec]
    for row, counter in enumerate(counters):
        words[3] = counter
        bits.state = state
        for kind, single, high, values in wanted:  # a single number is drawn as one: a fourth of an array's time
            if kind == "normal":
                generator.standard_normal(dtype=np.float32, out=values[row : row + 1])
            elif kind == "uniform":
                values[row] = generator.random() if single else generator.random(values.shape[1:])
            else:
                values[row] = generator.integers(high) if single else generator.integers(high, size=values.shape[1:])
    for draw in spec:
        if draw.kind == "uniform":
            np.maximum(result[draw.name], 2.0**-54, out=result[draw.name])  # open at 0: times and logits need it
    return result


def seeded(seed: int, purpose: str) -> int:
    """A seed of 63 bits for one purpose: for generators that draw once (first weights), not by position."""
    return int(_key(seed, purpose)[0] >> np.uint64(1))


def _key(seed: int, purpose: str) -> Array:
    return np.frombuffer(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:16], dtype=np.uint64)
