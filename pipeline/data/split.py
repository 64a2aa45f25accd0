"""A split of a data set in an order fixed by a seed: its rows, its classes, its images in memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import Config
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.data.pictures import Images

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


SPLITS = ("train", "val")
MEMORY = 1_000_000_000  # bytes of training images that are looked at; the report says how many these were
Array = np.ndarray[Any, np.dtype[Any]]


def split_order(folder: Path, split: str, config: Config, seed: int) -> tuple[Array, Array]:
    """(row of the index, class) int64 [n] of each real image of a split, in a random order fixed by `seed`: figures
    stand on none that a model made."""
    from pipeline.data.index import Index

    index = Index.open(folder, split, config.data.cache)
    rows = np.random.Generator(np.random.Philox(seed)).permutation(len(index))
    rows = rows[~index.generated()[rows]]
    if not len(rows):
        raise UserError(f"{folder}: the {split} split has no real images; give more images or another `data.split`")
    return rows, index.labels()[rows]


def load_split(
    folder: Path, split: str, config: Config, seed: int, limit: int | None = None, clips: bool = False
) -> tuple[Images, Array]:
    """Images uint8 [n, H, W, C] (of other depths their values, in their unit) and classes int64 [n] (-1: none) of a
    split, in the order of `split_order`; those of other shapes (`data.buckets`) are stretched to the square. clips:
    whether whoever asks knows what to do with [n, T, H, W, C].

    At most MEMORY bytes of them, and at most `limit`. Raises UserError for an empty split, for text, and for a damaged
    image by its name.
    """
    if config.data.source.kind == "text" or (config.data.clip is not None and not clips):
        kind = "text has" if config.data.clip is None else "clips are"
        raise UserError(f"`data.source.kind`: {kind} no images, which this needs; give a config of images")
    from pipeline.data.index import Index, read_image
    from pipeline.data.transforms import squared

    index, sides, channels = Index.open(folder, split, config.data.cache), config.data.sides, config.data.channels
    rows, labels = split_order(folder, split, config, seed)
    dtype = np.dtype(np.uint8 if index.values is None else index.values.dtype)
    count = max(1, MEMORY // (math.prod(sides) * channels * dtype.itemsize))
    rows = rows[: count if limit is None else min(count, limit)]
    images = np.empty((len(rows), *sides, channels), dtype)
    for place in np.argsort(rows):  # read shard by shard: a remote one is copied once
        pixels = read_image(index, int(rows[place]), config.data)
        pixels = pixels if config.data.buckets is None else squared(pixels, sides[0])
        images[place] = np.moveaxis(pixels, 0, -1)  # [C, ...] -> [..., C]
    return images, labels[: len(rows)]


def validation_images(index: Any, data: Any, batch: int) -> Iterator[torch.Tensor]:
    """Images [n, c, H, W], uint8, or of other depths float32 in [-1, 1], of an index of one shape in its own order,
    `batch` at a time, the last ones fewer."""
    import numpy as np
    import torch

    from pipeline.data.index import read_image

    for first in range(0, len(index), batch):
        rows = range(first, min(first + batch, len(index)))
        images = np.stack([read_image(index, i, data) for i in rows])
        yield torch.from_numpy(images) if index.values is None else index.values.tensor(images)
