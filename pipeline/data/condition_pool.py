"""The conditions of an artifact, opened in the order of the latents of a split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts import Artifact
from pipeline.data.caption_shards import known
from pipeline.data.condition_shards import ConditionIndex
from pipeline.data.index import OPEN
from pipeline.data.latent_pool import listed
from pipeline.data.maps import packed
from pipeline.data.text_encoders import Embedding

if TYPE_CHECKING:
    from pipeline.schema.data import Cache

Array = np.ndarray[Any, np.dtype[Any]]


def open_conditions(
    conditions: Artifact, data: Artifact, latents: Artifact, split: str, cache: Cache | None
) -> list[ConditionIndex]:
    """An index a bucket (one where there are none), each numbered as the split's latents are.

    Where images that could not be read were encoded as others (`data.on_corrupt: skip`), so are their conditions.
    """
    pool, shards = listed(conditions)
    values, embedded, maps = (
        [r for r in shards if r["split"] == split and _kind(r) == kind] for kind in ("", "embeds", "maps")
    )
    buckets = latents.summary.get("buckets")
    numbers: list[int | None] = [None] if buckets is None else list(range(len(buckets)))
    return [
        ConditionIndex(
            pool,
            [record for record in values if record.get("bucket") == bucket],
            conditions.summary["attributes"],
            conditions.summary["caption"],
            _stand_ins(data, latents, split, bucket, cache) if latents.summary.get("lost") else None,
            [record for record in embedded if record.get("bucket") == bucket],
            conditions.summary.get("spatial"),
            maps,
            max(8, OPEN // len(numbers)),
        )
        for bucket in numbers
    ]


def maps_of(conditions: Artifact, split: str, samples: Iterable[int]) -> dict[str, list[str | None]]:
    """By spatial condition the packed map of each of these samples of a split's images, None where there is none; empty
    where there are no spatial conditions."""
    spatial = conditions.summary.get("spatial", {})
    if not spatial:
        return {}
    pool, shards = listed(conditions)
    of_split = [r for r in shards if r["split"] == split]
    values, maps = ([r for r in of_split if _kind(r) == kind] for kind in ("", "maps"))
    index = ConditionIndex(pool, values, {}, None, spatial=spatial, maps=maps)
    found = {name: [index.map_of(i, name) for i in samples] for name in spatial}
    return {name: [None if one is None else packed(one) for one in several] for name, several in found.items()}


def _kind(record: Mapping[str, Any]) -> str:
    """What a file of the listing holds: values (""), embedded captions, maps."""
    return next((kind for kind in ("embeds", "maps") if kind in record), "")


def embeddings(conditions: Artifact, split: str, texts: Iterable[str]) -> dict[str, Embedding]:
    """What the frozen encoder gave for those of the texts that are captions of the split; empty where there is none."""
    pool, shards = listed(conditions)
    files = [pool / r["file"] for r in shards if r["split"] == split and "embeds" in r]
    return known(files, texts)


def _stand_ins(data: Artifact, latents: Artifact, split: str, bucket: int | None, cache: Cache | None) -> Array:
    """The sample int64 [n] that each latent is of, by its key."""
    from pipeline.data.index import Index
    from pipeline.data.latent_pool import open_latents

    index = Index.open(data.path, split, cache).parts[bucket or 0]
    encoded = open_latents(latents, split).parts[bucket or 0]
    keys = [key for shard in range(len(encoded.counts)) for key in encoded.keys(shard)]
    rows = {index.key(i): i for i in range(len(index))}
    return np.array([rows[key] for key in keys], np.int64)
