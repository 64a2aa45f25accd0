"""Which training images are nearest to an image, by pixels and by features, and where they come from.

Distances are those of `pipeline/evaluation/metrics/copies.py`. Whether a model has kept its training images is asked
by `ldm audit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.applications.audit import trained_on
from pipeline.artifacts import Artifact
from pipeline.config import Config
from pipeline.data.pictures import Images
from pipeline.errors import UserError, many
from pipeline.evaluation.metrics import copies
from pipeline.evaluation.metrics.features import Extractor
from pipeline.generate.generator import Generator

Array = np.ndarray[Any, np.dtype[Any]]
WAYS = ("pixels", "features")
MOST = copies.NEIGHBOURS  # neighbours that can be asked for
LEAST = 2  # training images that there have to be


@dataclass(frozen=True)
class Training:
    """What a model was trained on: images uint8 [m, H, W, C] with their features [m, d], and of each its lineage, plain
    JSON values. about: the data, the images that were looked at and those there are, the extractor."""

    images: Images = field(repr=False)
    features: Array = field(repr=False)
    extractor: Extractor = field(repr=False)
    lineage: list[dict[str, Any]] = field(repr=False)
    about: Mapping[str, Any] = field(default_factory=dict)


def data_of(model: Generator, root: Path) -> tuple[Config, Artifact]:
    """The config of the run that made a model, and its data. UserError where they are not under `root`, or of several
    shapes."""
    config, ingest, _, _ = trained_on(model, root, "nearest")
    if config.data.buckets is not None:
        raise UserError(
            "nearest: knows square images only, and `data.buckets` has several shapes; leave it out (--show)"
        )
    return config, ingest


def training_of(model: Generator, root: Path) -> Training:
    """The training images of a model of a run under `root`, at most `split.MEMORY` bytes of them, without those that a
    model made. UserError where they are not there, or of several shapes."""
    from pipeline.data.index import Index
    from pipeline.data.split import load_split, split_order
    from pipeline.evaluation.extractors import extractor_of

    config, ingest = data_of(model, root)
    seed = config.evaluate.seed
    images, labels = load_split(ingest.path, "train", config, seed)
    if len(images) < LEAST:
        raise UserError(f"nearest: {many(len(images), 'training image')}, {LEAST} at least")
    extractor = extractor_of(config, ingest, lambda: ((images, labels), load_split(ingest.path, "val", config, seed)))
    index = Index.open(ingest.path, "train", config.data.cache)
    rows = split_order(ingest.path, "train", config, seed)[0][: len(images)]
    shards, classes, data = index.shards(), ingest.summary["classes"], f"ingest/{ingest.fingerprint}"
    lineage = []
    for row, label in zip(rows, labels, strict=True):
        of_class = {"class": str(classes[label])} if label >= 0 else {}
        lineage.append(
            {"key": index.key(int(row)), **of_class, "shard": shards[index.locate(int(row))[0]], "data": data}
        )
    about = {
        "data": {"ingest": ingest.fingerprint, "content": ingest.content},
        "looked_at": len(images),
        "trained_on": len(index),
        "extractor": {key: getattr(extractor, key) for key in ("kind", "digest", "description")},
    }
    return Training(images, extractor(images), extractor, lineage, about)


def nearest(training: Training, images: Images, k: int = 5) -> list[dict[str, list[dict[str, Any]]]]:
    """Of each of the images uint8 [n, H, W, C], by way (`WAYS`), its k nearest training images, the nearest first:
    place in `training.images`, distance (gray levels, root mean square over pixels; or in the features), mirrored,
    moved (pixels down and right by which the image is moved against it), and its lineage. UserError for another
    size."""
    if images.shape[1:] != training.images.shape[1:]:
        shown, there = ("x".join(map(str, each.shape[1:])) for each in (images, training.images))
        raise UserError(f"nearest: images are {shown} (height x width x channels), training images {there}")
    if not 1 <= k <= MOST:
        raise UserError(f"nearest: {k} asked for, expected 1 to {MOST}")
    sides = (training.extractor(images), training.extractor(np.ascontiguousarray(images[:, :, ::-1])))
    found = (
        copies.by_pixels(images, training.images, k=k),
        copies.by_features(*sides, training.features, k=k),
    )
    return [
        {way: _entries(training, near, row) for way, near in zip(WAYS, found, strict=True)}
        for row in range(len(images))
    ]


def _entries(training: Training, near: copies.Nearest, row: int) -> list[dict[str, Any]]:
    return [
        {
            "place": int(place),
            "distance": float(distance),
            "mirrored": bool(mirrored),
            "moved": [int(by) for by in moved],
            **training.lineage[place],
        }
        for place, distance, mirrored, moved in zip(
            near.index[row], near.distance[row], near.mirrored[row], near.moved[row], strict=True
        )
    ]
