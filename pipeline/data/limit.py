"""`data.limit`: so many of a source's images, in the shares of its classes, the same ones each time.

Which ones is decided by a hash of their keys, another one than the split's. What is not chosen is not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.data.listing import Listing

if TYPE_CHECKING:
    from pipeline.schema.data import Data


def limit_recipe(data: Data) -> dict[str, Any]:
    """What of the limit decides on the stored images; nothing where there is none."""
    return {} if data.limit is None else {"limit": data.limit}


def chosen(keys: Sequence[str], strata: Sequence[Any], limit: int) -> list[int]:
    """Places, rising, of `limit` samples (all, if there are no more): of each stratum its share, one at least if the
    limit allows, those whose keys' hashes come first. A higher limit keeps nearly all that a lower one takes."""
    if len(keys) <= limit:
        return list(range(len(keys)))
    members: dict[str, list[int]] = {}
    for place, stratum in enumerate(strata):
        members.setdefault(repr(stratum), []).append(place)
    counts = {name: len(places) for name, places in members.items()}
    kept = []
    for name, count in shares(counts, limit).items():
        kept += sorted(members[name], key=lambda place: (hashed(keys[place]), place))[:count]
    return sorted(kept)


def shares(counts: dict[str, int], limit: int) -> dict[str, int]:
    """How many of each stratum: proportional, rounded by largest remainder; one at least if it can be."""
    total = sum(counts.values())
    exact = {name: limit * count / total for name, count in counts.items()}
    given = {name: int(share) for name, share in exact.items()}
    order = sorted(counts, key=lambda name: (given[name] > 0, given[name] - exact[name], name))
    left = limit - sum(given.values())
    for name in order[:left]:
        given[name] += 1
    for name in order[left:]:  # those that are still empty, from the fullest ones
        fullest = max(given, key=lambda other: given[other])
        if given[name] == 0 and given[fullest] > 1:
            given[name], given[fullest] = 1, given[fullest] - 1
    return given


def hashed(key: str) -> bytes:
    return hashlib.sha256(b"limit/" + key.encode("utf-8", "surrogateescape")).digest()[:8]


def limited(found: Listing, limit: int) -> Listing:
    """A listing of `limit` images; of files that are missing their share."""
    keys = [row.key for row in found.rows] + found.missing
    strata = [(row.attributes.get("split"), row.label) for row in found.rows] + [("missing",)] * len(found.missing)
    places = chosen(keys, strata, limit)
    rows = [found.rows[place] for place in places if place < len(found.rows)]
    missing = [keys[place] for place in places if place >= len(found.rows)]
    notes = [f"data.limit: {len(places):,} of {len(keys):,} images are taken"] if len(places) < len(keys) else []
    return replace(found, rows=rows, missing=missing, notes=[*found.notes, *notes])
