"""Which array of an .npz file is what, by name: `images`, `labels`; MedMNIST's `train_images`; Keras's `x_train`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import UserError

IMAGES = ("images", "image", "imgs", "x")
LABELS = ("labels", "label", "y", "targets", "target")
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
          "test": "test", "testing": "test"}  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """(split, name) of the arrays to read; split "" where the file has no splits of its own. notes: what to know."""

    images: list[tuple[str, str]]
    labels: list[tuple[str, str]]
    notes: list[str]

    @property
    def splits(self) -> bool:
        return self.images[0][0] != ""


def role(name: str) -> tuple[str, str] | None:
    """(split, "images" or "labels") of an array that is named after both, such as train_images or y_test."""
    words = re.split(r"[^a-z]+", name.lower())
    splits = [SPLITS[word] for word in words if word in SPLITS]
    kinds = [kind for kind, known in (("images", IMAGES), ("labels", LABELS)) if set(words) & set(known)]
    return (splits[0], kinds[0]) if len(words) == 2 and len(splits) == len(kinds) == 1 else None


def find_parts(path: str, names: Sequence[str], images_key: str | None, labels_key: str | None) -> Parts:
    """The arrays to read. UserError where none is known to be images, or none has the name that is asked for."""
    for key, given in (("images_key", images_key), ("labels_key", labels_key)):
        if given is not None and given not in names:
            raise UserError(f"{path} has no array {given!r}, only {', '.join(names)}: correct `data.source.{key}`")
    roles = {found: name for name in names if (found := role(name))}
    images = images_key or ("images" if "images" in names else None)
    if images is not None:
        own = role(images)
        labels = labels_key or (roles.get((own[0], "labels")) if own else "labels" if "labels" in names else None)
        return Parts([("", images)], [("", labels)] if labels else [], [])
    there = [split for split in ("train", "val", "test") if (split, "images") in roles]
    if "train" not in there:
        raise UserError(f"{path} has no array `images`, only {', '.join(names)}: name one by `data.source.images_key`")
    if labels_key is not None:
        raise UserError(f"{path}: `data.source.labels_key` needs `images_key`, since there are images of {there}")
    taken = [split for split in there if split != "test" or there == ["train", "test"]]
    named = [(split, roles[split, "images"]) for split in taken]
    notes = [f"arrays {' and '.join(name for _, name in named)} are read; `data.split.by: source` keeps them apart"]
    if "test" not in taken and "test" in there:
        test = roles["test", "images"]
        notes.append(f"array {test} is left out, for tests; `data.source.images_key: {test}` reads it")
    held_out = [("val" if split == "test" else split, name) for split, name in named]
    labels_of = [("val" if s == "test" else s, roles[s, "labels"]) for s in taken if (s, "labels") in roles]
    return Parts(held_out, labels_of, notes)
