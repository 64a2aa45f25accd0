"""What ingest would leave out, which classes it would leave without a training image, and what the model would be told
besides the class, before anything runs.

Reads names, not images: what cannot be decoded, and copies, are found by ingest alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.config import Config
from pipeline.data import condition_report, sources, tars
from pipeline.data.assign import assign, untrained
from pipeline.data.captions import captions_of
from pipeline.data.condition_report import lines, merged
from pipeline.data.condition_shards import KEY, values_of
from pipeline.data.index_tars import samples_of
from pipeline.data.listing import LeftOut, Unread
from pipeline.data.map_sources import located
from pipeline.errors import by_reason, many
from pipeline.planning.look import spread
from pipeline.planning.look_members import meta_of
from pipeline.schema.data import Data
from pipeline.stages import ingest
from pipeline.stages.conditions import asked, check

TARS = 8  # tars whose members are listed, evenly spread


def outlook(data: Data, finished: Artifact | None) -> list[str]:
    """Lines for a dry run; `finished`: what ingest has made already. Raises UserError as ingest would."""
    if finished is not None:
        return ingest.told(finished.summary, finished.path)
    if data.source.kind == "webdataset":
        return _of_tars([path for path in tars.expand(data.source.path) if not tars.is_remote(path)])
    if data.source.kind not in ("folder", "table", "clips"):
        return []
    listing = sources.listing(data.source, Unread())
    assigned = assign(data, listing)
    found = [f"not taken from the source: {listing.left_out}"] if listing.left_out else []
    if assigned.quarantine:
        counts = Counter(entry["reason"] for entry in assigned.quarantine)
        what = many(len(assigned.quarantine), data.noun)
        found.append(f"{what} for quarantine, as far as names tell: {by_reason(counts)}")
    train, held_out = (Counter(row.label for _, row in rows if row.label is not None) for rows in assigned.rows)
    alone = untrained(train, held_out)
    return [*found, alone] if alone else found


def told_outlook(config: Config, finished: Artifact | None) -> list[str]:
    """What the model would be told besides the class, a line each, of all rows of a table, or of a folder; of local
    tars those that are looked at. finished: what the stage has made already. Raises UserError as the stage would."""
    if not config.diffusion.condition.columns:
        return []
    if finished is not None:
        summary = finished.summary
        return lines(summary["seen"], summary["images"], summary["cut"]) if "seen" in summary else []
    condition, data, where = asked(config), config.data, ""
    source = data.source
    if source.kind == "webdataset":
        paths = [path for path in tars.expand(source.path) if not tars.is_remote(path)]
        metas = [meta for path in spread(paths, TARS) for meta in _metas_of(Path(path))]
        where = "" if len(paths) <= TARS else f" (of {TARS} of {len(paths)} tars)"
    elif source.kind in ("folder", "table", "clips"):
        label = condition["label"] or "class"
        rows = sources.listing(source, Unread()).rows
        metas = [{label: r.label, "caption": r.caption, **r.attributes, KEY: r.key} for r in rows]
    else:
        return []
    if not metas:
        return []
    values, texts = values_of(condition, metas)
    seen = merged([condition_report.seen(values, texts if condition["caption"] else None)])
    if source.kind == "table":
        pictures = condition["spatial"].items()
        seen |= {name: {"told": len(located(data, own["column"])), "bad": 0} for name, own in pictures}
    check(seen, condition, {column for meta in metas for column in meta if column != KEY})
    trained = condition["caption"] and "encoder" not in condition["caption"]
    limit = condition["caption"]["tokens"] - 1 if trained else None
    cut = None if limit is None else sum(len(t.encode()) > limit for m in metas for t in captions_of(m.get("caption")))
    return [f"{line}{where}" for line in lines(seen, len(metas), cut)]


def _metas_of(path: Path) -> Iterator[dict[str, Any]]:
    """The columns of a tar's samples."""
    with open(path, "rb") as file:
        for key, members, _ in samples_of(path, str(path)):
            known = {}
            if member := members.get("cls"):
                file.seek(member.offset)
                known["class"] = file.read(member.length).decode(errors="replace").strip()
            yield {**known, **meta_of(file, members), KEY: key}


def _of_tars(paths: list[str]) -> list[str]:
    left_out, some = LeftOut(), spread(paths, TARS)
    for path in some:
        for _ in samples_of(Path(path), path, left_out):
            pass
    where = "the tars" if len(some) == len(paths) else f"{len(some)} of {len(paths)} tars that were looked at"
    return [f"not taken from {where}: {left_out}"] if left_out else []
