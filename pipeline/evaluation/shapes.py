"""What evaluation does where images are of several shapes (`data.buckets`).

Samples are asked for in the shapes (and classes) of training images, reconstructions are made and compared with their
images shape by shape. Features need one size: real images, samples and reconstructions are stretched to a square of
`data.size` in the same way. The measures themselves are in `metrics/`, how they are put together in
`stages/evaluate.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import Config
from pipeline.data.index import Index, read_image
from pipeline.data.transforms import centre_in, squared
from pipeline.schema.data import text

if TYPE_CHECKING:
    from pipeline.data.pictures import Images
    from pipeline.generate.generator import Generator
    from pipeline.schema.data import Shape

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Native:
    """What the squares do not say. shapes: (height, width) of each sample to ask for. held_out: the first held-out
    images in their own shapes, each uint8 [h, w, C]. side: of the squares."""

    shapes: list[Shape]
    held_out: list[Images]
    side: int

    @property
    def told(self) -> dict[str, Any]:
        """For the report."""
        shapes = Counter(map(text, self.shapes))
        return {"buckets": {"samples": dict(sorted(shapes.items())), "stretched_to": self.side}}


def native(folder: Path, config: Config, count: int) -> Native | None:
    """Of the data set in `folder`, `count` images at most; None where its images are squares."""
    from pipeline.data.split import split_order

    if config.data.buckets is None:
        return None
    seed = config.evaluate.seed
    train, held_out = (Index.open(folder, split, config.data.cache) for split in ("train", "val"))
    asked = split_order(folder, "train", config, seed)[0]
    shapes = [train.shape_of(int(asked[i % len(asked)])) for i in range(config.evaluate.samples)]
    rows = split_order(folder, "val", config, seed)[0][:count]
    images = {int(i): read_image(held_out, int(i), config.data).transpose(1, 2, 0) for i in np.sort(rows)}
    return Native([shape for shape in shapes if shape], [images[int(i)] for i in rows], config.data.size)


def samples(
    generator: Generator,
    asked: Sequence[int] | None,
    shapes: Sequence[Shape],
    how: dict[str, Any],
    seed: int,
    told: Mapping[str, Any] | None = None,
) -> tuple[list[Images], dict[str, Any]]:
    """An image [h, w, C] of each shape, class and what else it is `told`, and what was asked of the generator."""
    from pipeline.generate.told import part

    made: dict[int, Images] = {}
    said: dict[str, Any] = {}
    for shape in sorted(set(shapes)):
        rows = [i for i, other in enumerate(shapes) if other == shape]
        classes = None if asked is None else [asked[i] for i in rows]
        said = generator.request(classes, len(rows), seed, shape=shape, **part(told or {}, rows), **how)
        images = generator.images(said, first=len(made))  # its own noise: no two images begin alike
        made |= dict(zip(rows, images, strict=True))
    return [made[i] for i in range(len(shapes))], {**said, "n": len(shapes), "shape": None}


def reconstructed(generator: Generator, images: Sequence[Images], batch_size: int) -> list[Images]:
    """Each image [h, w, C] through the autoencoder and back."""
    return by_shape(images, lambda same: list(generator.decode(generator.encode(same, batch_size), batch_size)))


def pixel_means(
    images: Sequence[Images], others: Sequence[Images], measure: Callable[[Images, Images], float]
) -> float:
    """A mean over images of a measure that takes images of one shape, uint8 [n, h, w, C]."""
    total = 0.0
    for shape in sorted({image.shape for image in images}):
        rows = [i for i, image in enumerate(images) if image.shape == shape]
        total += len(rows) * measure(np.stack([images[i] for i in rows]), np.stack([others[i] for i in rows]))
    return total / len(images)


def by_shape(images: Sequence[Images], function: Callable[[Images], list[Images]]) -> list[Images]:
    """`function` of the images of each shape, stacked; its results in the order of `images`."""
    found: dict[int, Images] = {}
    for shape in sorted({image.shape for image in images}):
        rows = [i for i, image in enumerate(images) if image.shape == shape]
        found |= dict(zip(rows, function(np.stack([images[i] for i in rows])), strict=True))
    return [found[i] for i in range(len(images))]


def squares(images: Sequence[Images], side: int) -> Images:
    """Images [h, w, C] stretched to uint8 [n, side, side, C]."""
    return np.stack([squared(image.transpose(2, 0, 1), side).transpose(1, 2, 0) for image in images])


def cells(images: Sequence[Images]) -> Images:
    """Images [h, w, C] in the middle of white cells of one size: uint8 [n, H, W, C]."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    out = np.full((len(images), images[0].shape[2], height, width), 255, np.uint8)
    for cell, image in zip(out, images, strict=True):
        centre_in(cell, image.transpose(2, 0, 1))
    return out.transpose(0, 2, 3, 1)
