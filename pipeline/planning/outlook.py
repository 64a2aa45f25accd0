"""What ingest would leave out, and which classes it would leave without a training image, before it runs.

Reads names, not images: what cannot be decoded, and copies, are found by ingest alone.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pipeline.artifacts import Artifact
from pipeline.data import sources, tars
from pipeline.data.assign import assign, untrained
from pipeline.data.index_tars import samples_of
from pipeline.data.listing import LeftOut, Unread
from pipeline.planning.look import spread
from pipeline.schema.data import Data
from pipeline.stages.ingest import told

TARS = 8  # tars whose members are listed, evenly spread


def outlook(data: Data, finished: Artifact | None) -> list[str]:
    """Lines for a dry run; `finished`: what ingest has made already. Raises UserError as ingest would."""
    if finished is not None:
        return told(finished.summary, finished.path)
    if data.source.kind == "webdataset":
        return _of_tars([path for path in tars.expand(data.source.path) if not tars.is_remote(path)])
    if data.source.kind not in ("folder", "table"):
        return []
    listing = sources.listing(data.source, Unread())
    assigned = assign(data, listing)
    lines = [f"not taken from the source: {listing.left_out}"] if listing.left_out else []
    if assigned.quarantine:
        counts = Counter(entry["reason"] for entry in assigned.quarantine)
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
        lines.append(f"{len(assigned.quarantine):,} images for quarantine, as far as names tell: {reasons}")
    train, held_out = (Counter(row.label for _, row in rows if row.label is not None) for rows in assigned.rows)
    alone = untrained(train, held_out)
    return [*lines, alone] if alone else lines


def _of_tars(paths: list[str]) -> list[str]:
    left_out, some = LeftOut(), spread(paths, TARS)
    for path in some:
        for _ in samples_of(Path(path), path, left_out):
            pass
    where = "the tars" if len(some) == len(paths) else f"{len(some)} of {len(paths)} tars that were looked at"
    return [f"not taken from {where}: {left_out}"] if left_out else []
