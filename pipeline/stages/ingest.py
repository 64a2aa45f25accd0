"""Stage 1, ingest: from a source of images to indexed shards, a train and validation split, and a report on the data.

Images of folders, tables and arrays are resized and written to our own WebDataset shards; foreign tars stay where they
are and are indexed. Either way a task handles one shard, and a shard whose sidecar exists is finished: a restart skips
it. What is unusable goes to quarantine.jsonl with its reason. Listing sources is `data/sources.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import Config
from pipeline.data import array_members, clips, sources, twins
from pipeline.data.assign import assign, untrained
from pipeline.data.buckets import bucket_recipe
from pipeline.data.held_out import folds
from pipeline.data.index import Index, write_index
from pipeline.data.index_tars import TarPlan, hash_tar, index_tar, tar_groups, tar_strata
from pipeline.data.limit import chosen, limit_recipe
from pipeline.data.listing import LeftOut, plain
from pipeline.data.percentiles import value_map_of
from pipeline.data.report import contact_sheet, highest_label, report, save_png, sheet_of_text
from pipeline.data.tars import tar_classes
from pipeline.data.waves import transform_of
from pipeline.data.write_shards import Plan, write_shard
from pipeline.errors import UserError, many
from pipeline.files import atomic_write, write_json
from pipeline.schema.data import Data, noun_of, text
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact, Writer
    from pipeline.cluster.cluster import Cluster
    from pipeline.cluster.inline import Inline
    from pipeline.data.listing import Listing
    from pipeline.data.tars import Tar
    from pipeline.tracking.tracker import Spool


def recipe(config: Config, root: str | Path) -> dict[str, Any]:
    """What decides on the shards and their index: the source's content, not its path, and how images are kept."""
    data = result_fields(config.data)
    fields = ("size", "channels", "background", "split", "shard_size", "max_pixels", "max_quarantine")
    kept = {name: data[name] for name in fields}
    by = config.data.split.by
    unused = {"fold": ("val_fraction",), "source": ("val_fraction", "folds", "fold")}.get(by, ("folds", "fold"))
    kept["split"] = {name: value for name, value in data["split"].items() if name not in unused}
    kept["crop"] = config.data.augment.crop
    if config.data.filters:
        kept["filters"] = data["filters"]
    for name in ("values", "sound"):
        if name in data:
            kept[name] = data[name]
    kept |= bucket_recipe(config.data) | limit_recipe(config.data) | clips.recipe(config.data)
    return {"source": sources.source_fingerprint(config.data, sources.digests_folder_of(root)), **kept}


def run(
    config: Config, inputs: dict[str, Artifact], writer: Writer, cluster: Cluster | Inline, spool: Spool | None
) -> dict[str, Any]:
    """Write shards or index tars, the quarantine list and the report into `writer.path`.

    Raises UserError for a damaged shard, an empty split, or more unusable images than data.max_quarantine.
    """
    folder, work, data = Path(writer.path), Path(writer.work), config.data
    work.mkdir(parents=True, exist_ok=True)
    cache, left_out = sources.digests_folder_of(config.run.root), LeftOut()
    notes: list[str] = []
    if data.source.kind == "webdataset":
        classes, quarantine, results = index_all(data, sources.tar_digests(data.source, cache), folder, work, cluster)
    else:
        listing = sources.open_listing(data, cache)
        left_out.update(listing.left_out)
        notes = listing.notes
        for note in notes:
            print(f"ingest: {note}", flush=True)
        classes, quarantine, results = write_all(data, listing, folder, work, cluster)
    for result in results:
        left_out.update(LeftOut(result["left_out"]))
    quarantine += [entry for result in results for entry in result["quarantine"]]
    atomic_write(folder / "quarantine.jsonl", "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in quarantine))
    _check_quarantine(data, quarantine, sum(r["train"] + r["val"] for r in results), folder)
    classes = classes if classes is not None else [str(i) for i in range(highest_label(results) + 1)]
    write_index(folder, classes, [result["shard"] for result in results], data.shapes if data.buckets else None)
    write_json(folder / "classes.json", classes)
    summary = report(data, classes, quarantine, results)
    if notes:
        summary["notes"] = notes
    for split in ("train", "val"):
        if summary["images"][split] == 0:
            raise UserError(
                f"no {split} {data.noun}s among {sum(summary['images'].values())}: change data.split "
                f"(val_fraction, column) or give more {data.noun}s"
            )
    if data.sound is not None:
        transform_of(data.sound).values(data.channels).save(folder)
    if data.values is not None:
        value_map_of(data, [result["shard"]["name"] for result in results], work).save(folder)
    write_json(folder / "report.json", summary)
    if left_out:  # beside the report: it is no part of what came out
        summary["left_out"] = left_out.json()
    for line in told(summary, folder):
        print(f"ingest: {line}", flush=True)
    sheet, train = None, Index.open(folder, "train", data.cache)
    if data.source.kind == "text":
        atomic_write(folder / "passages.txt", sheet_of_text(train))
    else:
        sheet = contact_sheet(train, data)
        save_png(folder / "contact_sheet.png", sheet)
    if spool is not None:
        _log(summary, sheet, folder, data, spool)
    return summary


def headline(summary: dict[str, Any]) -> str:
    images, classes = summary["images"], many(len(summary["classes"]), "class", "classes")
    filled = [text(row["shape"]) for row in summary.get("buckets", []) if row["train"] or row["val"]]
    buckets = f"buckets {', '.join(filled)}, " if filled else ""
    made = f" ({summary['generated']:,} generated)" if summary.get("generated") else ""
    return (
        f"{images['train']:,}{made} + {many(images['val'], noun_of(summary))}, {classes}, {buckets}"
        f"{summary['quarantined']} in quarantine"
    )


def told(summary: dict[str, Any], folder: Path) -> list[str]:
    """What a user should know of a finished ingest besides its counts, a line each."""
    lines = []
    if summary["quarantined"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary["quarantine_reasons"].items())
        total = summary["quarantined"] + sum(summary["images"].values())
        lines.append(
            f"{summary['quarantined']:,} of {many(total, noun_of(summary))} are in quarantine ({reasons}): "
            f"{folder / 'quarantine.jsonl'}"
        )
    if summary.get("generated"):
        lines.append(
            f"{summary['generated']:,} of {summary['images']['train']:,} training images are marked as generated: none "
            "is held out, no figure stands on them"
        )
    if summary.get("left_out"):
        lines.append(f"not taken from the source: {LeftOut(summary['left_out'])}")
    by_class = summary["images_by_class"]
    return lines + [line for line in [untrained(by_class["train"], by_class["val"])] if line]


# ---- split and quarantine --------------------------------------------------------------------------------------------


def _check_quarantine(data: Data, quarantine: list[dict[str, str]], good: int, folder: Path) -> None:
    total = good + len(quarantine)
    if len(quarantine) > data.max_quarantine * total:
        first, counts = quarantine[0], Counter(entry["reason"] for entry in quarantine)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        raise UserError(
            f"{len(quarantine)} of {many(total, data.noun)} are unusable ({reasons}; the first: {first['key']}: "
            f"{plain(first['detail'])}), over data.max_quarantine = {data.max_quarantine}: "
            f"see {folder / 'quarantine.jsonl'}, mend them or raise it"
        )


# ---- what a shard's task leaves --------------------------------------------------------------------------------------


def _log(summary: dict[str, Any], sheet: np.ndarray[Any, Any] | None, folder: Path, data: Data, spool: Spool) -> None:
    """The data report for the tracker: counts, the contact sheet, the files, the data set's name and digest."""
    counts = {f"ingest/{split}_images": count for split, count in summary["images"].items()}
    for row in summary.get("buckets", []):
        counts |= {f"ingest/{split}_images_{text(row['shape'])}": row[split] for split in ("train", "val")}
    counts |= {"ingest/generated": summary["generated"]} if "generated" in summary else {}
    spool.metrics({**counts, "ingest/quarantined": summary["quarantined"], "ingest/shards": summary["shards"]}, 0)
    if sheet is not None:
        spool.image("data/contact_sheet", sheet, 0)
    for name in ("report.json", "quarantine.jsonl", "passages.txt" if sheet is None else "contact_sheet.png"):
        spool.file(folder / name, "data")
    where = getattr(data.source, "path", "scikit-learn digits" if data.source.kind == "digits" else data.source.kind)
    name = Path(where).parent.name if data.source.kind in ("webdataset", "table") else Path(where).name
    spool.dataset(name, summary["digest"], where)


def index_all(
    data: Data, tars: list[Tar], folder: Path, work: Path, cluster: Cluster | Inline
) -> tuple[list[str] | None, list[dict[str, str]], list[dict[str, Any]]]:
    assert data.source.kind == "webdataset"
    classes = tar_classes(data.source)
    image = data.source.image or (array_members.MEMBER if data.values else None)
    plans = [TarPlan(f"shard-{number:05d}", tar, image=image) for number, tar in enumerate(tars)]

    if data.limit is not None:
        plans = limit_tars(data, plans, data.limit, cluster)

    def hash_task(plan: TarPlan) -> np.ndarray[Any, Any]:
        return hash_tar(plan, data, work)

    def task(plan: TarPlan) -> dict[str, Any]:
        return index_tar(plan, data, classes, folder, work)

    hashed = list(cluster.map(hash_task, plans, threads=1))
    # Exactly equal images: the first place in the order of shards stays, the others are left out.
    places = np.cumsum([0] + [len(digests) for digests in hashed])
    _, first = np.unique(np.concatenate(hashed), return_index=True)
    repeated = np.setdiff1d(np.arange(places[-1]), first)
    plans = [
        replace(plan, repeated=frozenset((repeated[(repeated >= start) & (repeated < end)] - start).tolist()))
        for plan, start, end in zip(plans, places[:-1], places[1:], strict=True)
    ]
    if data.split.by == "fold":

        def group_task(plan: TarPlan) -> Counter[str]:
            return tar_groups(plan, data)

        groups = sum(cluster.map(group_task, plans, threads=1), Counter[str]())
        plans = [replace(plan, fold_of=folds(groups, data.split.folds or 0)) for plan in plans]
    return classes, [], _without_twins(plans, None, task, folder, work, cluster)


def _without_twins(
    plans: Sequence[Any],
    order: Sequence[Sequence[int]] | None,
    task: Callable[[Any], dict[str, Any]],
    folder: Path,
    work: Path,
    cluster: Cluster | Inline,
) -> list[dict[str, Any]]:
    """The results of all shards. Those with images that repeat an earlier one's pixels are made again without them."""
    results = list(cluster.map(task, plans, threads=1))
    repeats = twins.find([twins.path_of(plan.name, work) for plan in plans], order)
    again = [
        number
        for number, (result, found) in enumerate(zip(results, repeats, strict=True))
        if result["repeats"] != [list(item) for item in sorted(found.items())]
    ]
    for number in again:  # the proof goes first: a shard that is half made again is believed by nobody
        (folder / f"{plans[number].name}.rows.npy").unlink()
    new = cluster.map(task, [replace(plans[number], repeats=repeats[number]) for number in again], threads=1)
    for number, result in zip(again, new, strict=True):
        results[number] = result
    return results


def limit_tars(data: Data, plans: list[TarPlan], limit: int, cluster: Cluster | Inline) -> list[TarPlan]:
    """Plans that take `limit` samples of all tars together."""

    def task(plan: TarPlan) -> list[tuple[str, str]]:
        return tar_strata(plan, data)

    samples = list(cluster.map(task, plans, threads=1))
    every = [sample for of_tar in samples for sample in of_tar]
    taken = np.array(chosen([key for key, _ in every], [stratum for _, stratum in every], limit), np.int64)
    print(f"ingest: data.limit: {len(taken):,} of {len(every):,} samples are taken", flush=True)
    ends = np.cumsum([0] + [len(of_tar) for of_tar in samples])
    return [
        replace(plan, chosen=frozenset((taken[(taken >= start) & (taken < end)] - start).tolist()))
        for plan, start, end in zip(plans, ends[:-1], ends[1:], strict=True)
    ]


def write_all(
    data: Data, listing: Listing, folder: Path, work: Path, cluster: Cluster | Inline
) -> tuple[list[str], list[dict[str, str]], list[dict[str, Any]]]:
    assigned = assign(data, listing)
    plans = []
    for which, (name, rows) in enumerate(zip(("train", "val"), assigned.rows, strict=True)):
        for number, start in enumerate(range(0, len(rows), data.shard_size)):
            places, part = zip(*rows[start : start + data.shard_size], strict=True)
            plans.append(Plan(f"{name}-{number:05d}", which, list(part), places))
    classes = listing.classes  # the task carries these, not the whole listing

    def task(plan: Plan) -> dict[str, Any]:
        return write_shard(plan, data, classes, folder, work)

    results = _without_twins(plans, [plan.places for plan in plans], task, folder, work, cluster)
    return classes, assigned.quarantine, results
