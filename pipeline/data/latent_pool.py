"""The pool of latent shards that all runs share: which an artifact lists, whether they are whole, how they open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact
from pipeline.errors import UserError
from pipeline.files import read_json, sha256_file

if TYPE_CHECKING:
    from pipeline.data.latent_shards import LatentBuckets, LatentIndex


def entry_path(shard: str | Path) -> Path:
    """The record beside a shard of a pool, written after it: its presence says that the shard is whole."""
    return Path(shard).with_suffix(".json")


def is_whole(shard: Path) -> bool:
    """Whether a shard and its record are there, and fit."""
    entry = entry_path(shard)
    return entry.exists() and shard.exists() and shard.stat().st_size == read_json(entry)["bytes"]


def listed(artifact: Artifact) -> tuple[Path, list[dict[str, Any]]]:
    """The pool that an artifact's shards lie in, and its records of them, in order."""
    listing = read_json(artifact.path / "shards.json")
    return artifact.path.parent.parent.parent / listing["pool"], listing["shards"]


def damaged(artifact: Artifact) -> list[str]:
    """The shards of its pool (`conditions` has one as well) that are not what the artifact says, by hash."""
    pool, shards = listed(artifact)
    files = {pool / shard["file"]: shard["sha256"] for shard in shards}
    return [path.name for path, digest in files.items() if not path.exists() or sha256_file(path) != digest]


def open_latents(artifact: Artifact, split: str) -> LatentIndex | LatentBuckets:
    """The latents of a split, in buckets where the images are."""
    from pipeline.data.index import OPEN
    from pipeline.data.latent_shards import LatentBuckets, LatentIndex

    buckets = artifact.summary.get("buckets")
    if buckets is None:
        return LatentIndex.open(shard_paths(artifact, split))
    limit = max(8, OPEN // len(buckets))
    return LatentBuckets([LatentIndex.open(shard_paths(artifact, split, b), limit) for b in range(len(buckets))])


def shard_paths(artifact: Artifact, split: str, bucket: int | None = None) -> list[Path]:
    """The latent shards of a split (and bucket), in order. Raises UserError if the pool lost one."""
    pool, shards = listed(artifact)
    paths = []
    for shard in shards:
        if shard["split"] == split and bucket in (None, shard.get("bucket")):
            path = pool / shard["file"]
            if not path.exists() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"{path}: missing or of another size; run again with --rebuild encode")
            paths.append(path)
    return paths
