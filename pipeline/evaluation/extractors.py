"""The extractor of a data set, kept in a pool, so that all runs on the same images have the same features.

    <run.root>/extractors/<key>.safetensors     key: the images and the options that decide on the extractor

A classifier trained twice is the same bits on one machine with one number of threads only. The first one that is made
is therefore kept, and every evaluation, curve and comparison on these images under this root takes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pipeline.artifacts import Artifact
from pipeline.config import Config
from pipeline.data.value_map import ValueMap
from pipeline.files import digest, sync_folder
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    from pipeline.data.pictures import Images
    from pipeline.data.split import Array
    from pipeline.evaluation.metrics.features import Extractor

    Split = tuple[Images, Array]


from typing import TYPE_CHECKING

import numpy as np

from pipeline.schema.stages import Evaluate

if TYPE_CHECKING:
    from pipeline.data.pictures import Images
    from pipeline.evaluation.metrics.features import Extractor


FORMAT = 2  # raised when files of this folder change in kind


def compared(config: Config, ingest: Artifact) -> int:
    """Images in each set that figures of this data set stand on: `evaluate.samples`, or as many as there are."""
    from pipeline.data.index import Index

    index = {split: Index.open(ingest.path, split, config.data.cache) for split in ("train", "val")}
    train, held_out = (int((~one.generated()).sum()) for one in index.values())
    return min(config.evaluate.samples, held_out, train // 2)


def extractor_of(
    config: Config, ingest: Artifact, splits: Callable[[], tuple[Split, Split]] | None = None
) -> Extractor:
    """The extractor that `config.evaluate` asks for, on the images of `ingest`: from the pool, or made and put there.

    splits: gives (training, held-out) images with labels as `load_split` does, where the caller has them already.
    """
    from pipeline.data.split import load_split
    from pipeline.evaluation.metrics import features

    path, values = pool_path(config, ingest), ValueMap.load(ingest.path)
    if path is not None and path.exists():
        return features.seen(features.load(path), values)
    if path is None:
        return features.seen(features.of_file(config.evaluate.extractor), values)
    if splits:
        train, held_out = splits()
    else:
        train, held_out = (load_split(ingest.path, split, config, config.evaluate.seed) for split in ("train", "val"))
    n = min(config.evaluate.samples, len(held_out[0]), len(train[0]) // 2)
    classes = len(ingest.summary["classes"])
    own, others = train[0][n:], held_out[0]
    if values is not None:
        own, others = values.floats_last(own), values.floats_last(others)
    made = make_extractor(config.evaluate, own, train[1][n:], others, held_out[1], classes)
    return features.seen(keep(made, path, features.load), values)


def pool_path(config: Config, ingest: Artifact) -> Path | None:
    """Where the extractor lies, or would lie; None for one that is a file of its own."""
    section = config.evaluate
    if section.extractor.path:
        return None
    return pool_file(config, ingest, [section.extractor.steps, section.samples, section.seed])


def pool_file(config: Config, ingest: Artifact, options: list[Any]) -> Path:
    """The place in the pool of what is trained on the images of `ingest` with these options."""
    from pipeline.data.split import MEMORY

    data = config.data
    what = [FORMAT, ingest.content, data.size, data.channels, list(data.background), data.augment.crop, MEMORY]
    what += [result_fields(kind) for kind in (data.clip, data.sound) if kind is not None]
    return Path(config.run.root) / "extractors" / f"{digest([*what, *options])[:16]}.safetensors"


class Saved(Protocol):
    """What lies in the pool: an extractor, or a judge."""

    def save(self, path: Path) -> None: ...


S = TypeVar("S", bound=Saved)


def keep(made: S, path: Path, load: Callable[[Path], S]) -> S:
    """Put what was trained into the pool unless another process was first; gives the one that is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = path.with_name(f"{path.stem}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    made.save(mine)
    try:
        os.link(mine, path)  # unlike a rename, this fails where there is one already
        sync_folder(path.parent)
    except FileExistsError:
        return load(path)
    finally:
        mine.unlink()
    return made


def why_no_classifier(labels: Array, held_out_labels: Array, classes: int) -> str | None:
    """Why no classifier can be trained on images of these classes (-1: none), in words; None where it can.

    labels: of the images that would train it, without those that are compared. classes: that have names.
    """
    met = len(np.unique(labels[labels >= 0]))
    if not met and not (held_out_labels >= 0).any():
        return "the images have no classes"
    if met < 2 and classes < 2:
        return "all images are of one class"
    if met < 2:
        return f"of {classes} classes {'only 1' if met else 'none'} is among the {len(labels):,} images that train it"
    return None if (held_out_labels >= 0).any() else "no held-out image has a class"


def make_extractor(
    config: Evaluate, train: Images, labels: Array, held_out: Images, held_out_labels: Array, classes: int
) -> Extractor:
    """The extractor that the config asks for. Where no classifier can be trained: random convolutions."""
    from pipeline.evaluation.metrics import features

    chosen = config.extractor
    if chosen.path:
        return features.of_file(chosen)
    known, known_held_out = labels >= 0, held_out_labels >= 0
    if reason := why_no_classifier(labels, held_out_labels, classes):
        return features.random_network(train, reason)
    return features.train_classifier(
        train[known],
        labels[known],
        held_out[known_held_out],
        held_out_labels[known_held_out],
        classes=max(classes, int(labels.max()) + 1),
        steps=chosen.steps,
        seed=config.seed,
    )
