"""Images with the same pixels in files of other bytes: one picture saved twice, compressed in two ways.

Each shard's task leaves the digests of the pixels that it has decoded; the shards in which an image repeats an earlier
one are then made again without it. So no image is decoded twice where there are no twins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.transforms import Bands
from pipeline.files import atomic_path

if TYPE_CHECKING:
    from PIL import Image

NONE = b""  # of an image that could not be decoded, or whose pixels say no more than its bytes


def pixel_digest(image: Image.Image | Bands) -> bytes:
    """16 bytes that say which pixels an RGB or L image has, or which values bands have."""
    if isinstance(image, Bands):
        head = f"{image.values.dtype} {image.values.shape} ".encode()
        return hashlib.blake2b(head + image.values.tobytes(), digest_size=16).digest()
    head = f"{image.mode} {image.size[0]}x{image.size[1]} ".encode()
    return hashlib.blake2b(head + image.tobytes(), digest_size=16).digest()


def path_of(name: str, work: Path) -> Path:
    """Where a shard's task leaves its digests."""
    return work / f"{name}.pixels.npy"


def save(path: Path, found: Sequence[tuple[bytes, str]]) -> None:
    """Write the (digest, key) of each place of a shard."""
    keys = [key.encode() for _, key in found]
    kind = [("pixels", "S16"), ("key", f"S{max([1, *map(len, keys)])}")]
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.array(list(zip((pixels for pixels, _ in found), keys, strict=True)), kind))


def find(paths: Sequence[Path], order: Sequence[Sequence[int]] | None = None) -> list[dict[int, str]]:
    """Of each shard the places of images that have the pixels of an earlier one, with that one's key.

    order: of each shard the rank of its places among all images; default: as the shards follow each other.
    """
    tables: list[np.ndarray[Any, Any]] = [np.load(path, mmap_mode="r") for path in paths]
    ends = np.cumsum([0, *map(len, tables)])
    if not ends[-1]:
        return [{} for _ in tables]
    digests = np.concatenate([np.array(table["pixels"]) for table in tables])
    ranks = np.arange(ends[-1]) if order is None else np.concatenate([np.asarray(part, np.int64) for part in order])
    by_rank = np.argsort(ranks, kind="stable")
    _, first, group = np.unique(digests[by_rank], return_index=True, return_inverse=True)
    earlier = np.empty(ends[-1], np.int64)
    earlier[by_rank] = by_rank[first[group]]
    found: list[dict[int, str]] = [{} for _ in tables]
    for at in np.flatnonzero((earlier != np.arange(ends[-1])) & (digests != NONE)):
        mine, other = (int(np.searchsorted(ends, i, side="right")) - 1 for i in (at, earlier[at]))
        found[mine][int(at - ends[mine])] = tables[other]["key"][earlier[at] - ends[other]].decode()
    return found
