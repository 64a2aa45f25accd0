"""A user's labelled real images for a trained model, all in memory.

Which images a source has and how they are read is `given_data.py`'s; what is marked as generated is left out here, and
what cannot be used is named. What is done with them is the business of `augment.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.applications import given_data
from pipeline.applications.given_data import Sample
from pipeline.data import tars
from pipeline.data.generated import marked
from pipeline.data.listing import class_order
from pipeline.data.pictures import Images
from pipeline.errors import UserError, many
from pipeline.files import digest

if TYPE_CHECKING:
    from pipeline.schema.data import Data


@dataclass(frozen=True)
class Labelled:
    """images: uint8 [n, H, W, C], at the model's size; values: of each its class, or its value of the column; keys and
    metas: of each its key and its columns; classes: all values, in the order of their numbers; digest: of what is in
    it; generated: images that were left out, since a model made them."""

    images: Images
    values: list[str]
    keys: list[str]
    metas: list[dict[str, Any]]
    classes: list[str]
    digest: str
    generated: int


def read(data: Data, samples: Sequence[Sample], column: str | None, shape: tuple[int, int, int]) -> Labelled:
    """The images that have a class, or a value of `column`, at shape (height, width, channels).

    UserError where there is none, and for an image that cannot be used.
    """
    real = [sample for sample in samples if not marked(sample.columns)]
    told = {sample.key: sample.label if column is None else sample.columns.get(column) for sample in real}
    values = {key: str(value).strip() for key, value in told.items() if value is not None and str(value).strip()}
    taken = [sample for sample in real if sample.key in values]
    where, what = getattr(data.source, "path", data.source.kind), f"value of {column!r}" if column else "class"
    if not taken:
        raise UserError(f"{where}: no real image with a {what}; name its column (--label or --by), or give other data")
    if len(taken) < len(real):
        print(f"{where}: {many(len(real) - len(taken), 'image')} without a {what} left out", flush=True)
    load = given_data.reader(data, shape[2], shape[:2])
    names = tars.tar_classes(data.source) if data.source.kind == "webdataset" and column is None else None
    given = [values[sample.key] for sample in taken]
    return Labelled(
        np.stack([load(sample.key, sample.place) for sample in taken]),
        given,
        [sample.key for sample in taken],
        [dict(sample.columns) for sample in taken],
        names or class_order(given),
        digest([[sample.key, sample.digest, values[sample.key]] for sample in taken]),
        len(samples) - len(real),
    )
