"""Stage 1, ingest: from a source of images to indexed shards, a train and validation split, and a report on the data.

Images of folders, tables and arrays are resized and written to our own WebDataset shards; foreign tars stay where they
are and are indexed. Either way a task handles one shard, and a shard whose sidecar exists is finished: a restart skips
it. What is unusable goes to quarantine.jsonl with its reason. Listing sources is `data/sources.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import Config
from pipeline.data import filters, shards, sources, transforms
from pipeline.data.buckets import bucket_of, bucket_recipe, text
from pipeline.data.cache import local_copy
from pipeline.data.index import Index, write_index, write_rows
from pipeline.data.report import TRAIN, VAL, Statistics, contact_sheet, highest_label, report, save_png, unusable
from pipeline.data.sources import Row, Tar
from pipeline.data.transforms import BadImage
from pipeline.errors import UserError
from pipeline.files import atomic_path, atomic_write, read_json, sha256_file, write_json
from pipeline.schema.data import Data, Shape
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact, Writer
    from pipeline.cluster import Cluster, Inline
    from pipeline.tracking import Spool

INPUTS: tuple[str, ...] = ()


def cache_folder(root: str | Path) -> Path:
    """Where the digests of source files are remembered between runs."""
    return Path(root) / "cache"


def recipe(config: Config, root: str | Path) -> dict[str, Any]:
    """What decides on the shards and their index: the source's content, not its path, and how images are kept."""
    data = result_fields(config.data)
    fields = ("size", "channels", "background", "split", "shard_size", "max_pixels", "max_quarantine")
    kept = {name: data[name] for name in fields}
    unused = ("val_fraction",) if config.data.split.by == "fold" else ("folds", "fold")
    kept["split"] = {name: value for name, value in data["split"].items() if name not in unused}
    kept["crop"] = config.data.augment.crop
    if config.data.filters:
        kept["filters"] = data["filters"]
    kept |= bucket_recipe(config.data)
    return {"source": sources.source_fingerprint(config.data, cache_folder(root)), **kept}


def run(
    config: Config, inputs: dict[str, Artifact], writer: Writer, cluster: Cluster | Inline, spool: Spool | None
) -> dict[str, Any]:
    """Write shards or index tars, the quarantine list and the report into `writer.path`.

    Raises UserError for a damaged shard, an empty split, or more unusable images than data.max_quarantine.
    """
    folder, work, data = Path(writer.path), Path(writer.work), config.data
    work.mkdir(parents=True, exist_ok=True)
    cache = cache_folder(config.run.root)
    if data.source.kind == "webdataset":
        classes, quarantine, results = _index_tars(data, sources.tar_digests(data.source, cache), folder, work, cluster)
    else:
        classes, quarantine, results = _write_shards(data, sources.open_listing(data, cache), folder, work, cluster)
    quarantine += [entry for result in results for entry in result["quarantine"]]
    atomic_write(folder / "quarantine.jsonl", "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in quarantine))
    _check_quarantine(data, quarantine, sum(r["train"] + r["val"] for r in results), folder)
    classes = classes if classes is not None else [str(i) for i in range(highest_label(results) + 1)]
    write_index(folder, classes, [result["shard"] for result in results], data.shapes if data.buckets else None)
    write_json(folder / "classes.json", classes)
    summary = report(data, classes, quarantine, results)
    for split in ("train", "val"):
        if summary["images"][split] == 0:
            raise UserError(
                f"no {split} images among {sum(summary['images'].values())}: change data.split (val_fraction, column) "
                "or give more images"
            )
    write_json(folder / "report.json", summary)
    sheet = contact_sheet(Index.open(folder, "train", data.cache), data)
    save_png(folder / "contact_sheet.png", sheet)
    if spool is not None:
        _log(summary, sheet, folder, data, spool)
    return summary


def headline(summary: dict[str, Any]) -> str:
    images, classes = summary["images"], len(summary["classes"])
    filled = [text(row["shape"]) for row in summary.get("buckets", []) if row["train"] or row["val"]]
    buckets = f"buckets {', '.join(filled)}, " if filled else ""
    return (
        f"{images['train']:,} + {images['val']:,} images, {classes} classes, {buckets}{summary['quarantined']} in "
        "quarantine"
    )


# ---- split and quarantine --------------------------------------------------------------------------------------------


def held_out(value: str, fraction: float) -> bool:
    """Whether a key, or a group's name, is for validation: its SHA-256 falls into the first `fraction` of all."""
    hashed = hashlib.sha256(value.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(hashed[:8], "big") < fraction * 2**64


def folds(groups: Mapping[str, int], count: int) -> dict[str, int]:
    """The fold of each group, none empty: the largest group first, each into the smallest fold so far.

    groups: images of each. So no two folds differ by more images than the largest group has. Which groups come
    together is decided by their names' SHA-256 where sizes are equal. Raises UserError for fewer groups than folds.
    """
    if len(groups) < count:
        raise UserError(
            f"data.split: {count} folds of {len(groups)} groups ({', '.join(sorted(groups)[:5]) or 'none'}); give at "
            "most as many `folds` as the column has values"
        )

    def order(name: str) -> tuple[int, bytes]:
        return -groups[name], hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()

    filled, found = [0] * count, {}
    for name in sorted(groups, key=order):
        found[name] = min(range(count), key=lambda fold: (filled[fold], fold))
        filled[found[name]] += groups[name]
    return found


def _group(data: Data, key: str, known: dict[str, Any]) -> str:
    """The value of the column that rows are kept together by."""
    column = str(data.split.column)
    if column not in known:
        raise UserError(f"data.split.column: {key} has no {column!r}; there are {', '.join(known) or 'no columns'}")
    return str(known[column])


def _split(data: Data, key: str, known: dict[str, Any], fold_of: Mapping[str, int]) -> int:
    """fold_of: the fold of each group, with `by: fold`."""
    if data.split.by == "fold":
        return VAL if fold_of[_group(data, key, known)] == data.split.fold else TRAIN
    if data.split.by == "column":
        key = _group(data, key, known)
    return VAL if held_out(key, data.split.val_fraction) else TRAIN


def _check_quarantine(data: Data, quarantine: list[dict[str, str]], good: int, folder: Path) -> None:
    total = good + len(quarantine)
    if len(quarantine) > data.max_quarantine * total:
        first, counts = quarantine[0], Counter(entry["reason"] for entry in quarantine)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        raise UserError(
            f"{len(quarantine)} of {total} images are unusable ({reasons}; the first: {first['key']}: "
            f"{first['detail']}), over data.max_quarantine = {data.max_quarantine}: "
            f"see {folder / 'quarantine.jsonl'}, mend them or raise it"
        )


# ---- shards that we write --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """One shard to write."""

    name: str
    split: int
    rows: list[Row]


def _write_shards(
    data: Data, listing: sources.Listing, folder: Path, work: Path, cluster: Cluster | Inline
) -> tuple[list[str], list[dict[str, str]], list[dict[str, Any]]]:
    quarantine = [unusable(name, "missing", "named in the table, no such file") for name in listing.missing]
    keys: set[str] = set()
    first: dict[str, str] = {}
    kept: list[tuple[Row, dict[str, Any]]] = []
    for row in listing.rows:
        if row.key in keys:
            quarantine.append(unusable(row.key, "duplicate key", f"{row.location} has the key of an earlier image"))
        elif row.digest in first:
            quarantine.append(unusable(row.key, "duplicate", f"the same bytes as {first[row.digest]}"))
        else:
            first[row.digest] = row.key
            columns = {**row.attributes, "label": row.label, "caption": row.caption}
            label, caption = getattr(data.source, "label", None), getattr(data.source, "caption", None)
            columns |= {name: value for name, value in ((label, row.label), (caption, row.caption)) if name}
            kept.append((row, columns))
        keys.add(row.key)
    by_fold = data.split.by == "fold"
    groups = Counter(_group(data, row.key, columns) for row, columns in kept) if by_fold else Counter()
    fold_of = folds(groups, data.split.folds or 0) if by_fold else {}
    split: tuple[list[Row], list[Row]] = ([], [])
    for row, columns in kept:
        split[_split(data, row.key, columns, fold_of)].append(row)
    plans = [
        Plan(f"{name}-{number:05d}", which, rows[start : start + data.shard_size])
        for which, (name, rows) in enumerate(zip(("train", "val"), split, strict=True))
        for number, start in enumerate(range(0, len(rows), data.shard_size))
    ]
    classes = listing.classes  # the task carries these, not the whole listing

    def task(plan: Plan) -> dict[str, Any]:
        return write_shard(plan, data, classes, folder, work)

    return classes, quarantine, list(cluster.map(task, plans, threads=1))


def write_shard(plan: Plan, data: Data, classes: list[str], folder: Path, work: Path) -> dict[str, Any]:
    """Write one shard (tar), its statistics (work/), then its sidecar: the sidecar proves the shard."""
    tar, result_file = folder / f"{plan.name}.tar", work / f"{plan.name}.json"
    if _finished(plan.name, folder, result_file):
        return dict(read_json(result_file))
    number = {name: i for i, name in enumerate(classes)}
    read, statistics = sources.reader(data.source), Statistics(data.channels)
    rows: list[tuple[Any, ...]] = []
    with atomic_path(tar) as temporary, open(temporary, "wb") as file:
        writer = shards.TarWriter(file)
        for row in plan.rows:
            try:
                image, size = _load(read(row.location), row, data)
            except BadImage as error:
                statistics.bad(row.key, error)
                continue
            bucket = _bucket(size, data)
            image = transforms.prepare(image, data, _shape(bucket, data))
            label = number[row.label] if row.label is not None else -1
            member, meta = _add(writer, row, label, transforms.to_png(image))
            statistics.add(image, size, label, plan.split, bucket)
            rows.append(_row(row.key, member, meta, label, plan.split, bucket, data))
        writer.close()
    return _finish(plan.name, tar.name, tar, rows, statistics, folder, result_file, data)


def _load(content: bytes | np.ndarray[Any, Any], row: Row, data: Data) -> tuple[Any, tuple[int, int]]:
    """A source's image, filtered, and its first size (width, height)."""
    if isinstance(content, bytes):
        if hashlib.sha256(content).hexdigest() != row.digest:
            raise UserError(f"{row.location} changed while ingest ran: run it again")
        extension = Path(str(row.location)).suffix[1:].lower()
        image = transforms.decode(content, data.channels, data.background, data.max_pixels, extension)
    else:
        image = transforms.from_array(content, data.channels, data.background)
    return filters.apply(image, data.filters), image.size


def _bucket(size: tuple[int, int], data: Data) -> int:
    """The bucket of an image of this width and height; 0 where there is no choice."""
    return bucket_of(size[1], size[0], data.shapes)


def _shape(bucket: int, data: Data) -> Shape | None:
    return None if data.buckets is None else data.shapes[bucket]


def _add(writer: shards.TarWriter, row: Row, label: int, png: bytes) -> tuple[shards.Member, shards.Member | None]:
    """A sample's members, as WebDataset names them: KEY.png, KEY.cls, KEY.json with caption and attributes."""
    name = shards.safe_key(row.key)
    member = writer.add(f"{name}.png", png)
    if label >= 0:
        writer.add(f"{name}.cls", str(label).encode())
    known = {**row.attributes, **({"caption": row.caption} if row.caption is not None else {})}
    meta = writer.add(f"{name}.json", json.dumps(known, sort_keys=True, ensure_ascii=False).encode()) if known else None
    return member, meta


# ---- tars that stay where they are -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TarPlan:
    """One foreign tar to index; `repeated`: places in it of images that an earlier place holds already."""

    name: str
    tar: Tar
    repeated: frozenset[int] = frozenset()
    fold_of: Mapping[str, int] = field(default_factory=dict)  # of each group, with `data.split.by: fold`


def _index_tars(
    data: Data, tars: list[Tar], folder: Path, work: Path, cluster: Cluster | Inline
) -> tuple[list[str] | None, list[dict[str, str]], list[dict[str, Any]]]:
    assert data.source.kind == "webdataset"
    classes = sources.tar_classes(data.source)
    plans = [TarPlan(f"shard-{number:05d}", tar) for number, tar in enumerate(tars)]

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
        TarPlan(plan.name, plan.tar, frozenset((repeated[(repeated >= start) & (repeated < end)] - start).tolist()))
        for plan, start, end in zip(plans, places[:-1], places[1:], strict=True)
    ]
    if data.split.by == "fold":

        def group_task(plan: TarPlan) -> Counter[str]:
            return tar_groups(plan, data)

        groups = sum(cluster.map(group_task, plans, threads=1), Counter[str]())
        plans = [replace(plan, fold_of=folds(groups, data.split.folds or 0)) for plan in plans]
    return classes, [], list(cluster.map(task, plans, threads=1))


def _samples(path: Path, plan: TarPlan) -> Iterator[tuple[str, dict[str, shards.Member], shards.Member | None]]:
    """(key, members by extension, the image member) of each sample of a tar."""
    for key, members in shards.samples(shards.scan(path, plan.tar.location)):
        images = [member for name, member in members.items() if name.rpartition(".")[2] in transforms.FORMATS]
        yield key, members, images[0] if images else None


def hash_tar(plan: TarPlan, data: Data, work: Path) -> np.ndarray[Any, Any]:
    """16 bytes of SHA-256 of each sample's image, as V16 [n]; kept in work/, so that a restart reads no tar again."""
    path = work / f"{plan.name}.digests.npy"
    if path.exists():
        return np.load(path)  # type: ignore[no-any-return]
    local = _local(plan.tar, data)
    with open(local, "rb") as file:
        found = []
        for key, _, image in _samples(local, plan):
            content = _read(file, image) if image else f"{plan.name}/{key}".encode()
            found.append(hashlib.sha256(content).digest()[:16])
    digests = np.frombuffer(b"".join(found), "S16")
    with atomic_path(path) as temporary, open(temporary, "wb") as out:
        np.save(out, digests)
    return digests


def tar_groups(plan: TarPlan, data: Data) -> Counter[str]:
    """Images of each group (value of `data.split.column`) in a tar, without those that an earlier place holds."""
    local = _local(plan.tar, data)
    found: Counter[str] = Counter()
    with open(local, "rb") as file:
        for place, (key, members, image) in enumerate(_samples(local, plan)):
            if image and place not in plan.repeated:
                shown = f"{plan.tar.location}: {key}"
                found[_group(data, key, _attributes(file, members.get("json"), shown))] += 1
    return found


def _local(tar: Tar, data: Data) -> Path:
    if sources.is_remote(tar.location):
        return local_copy(tar.location, None, data.cache, tar.identity)
    return Path(tar.location)


def _read(file: Any, member: shards.Member) -> bytes:
    file.seek(member.offset)
    return bytes(file.read(member.length))


def index_tar(plan: TarPlan, data: Data, classes: list[str] | None, folder: Path, work: Path) -> dict[str, Any]:
    """Decode each image of a tar once, and write the sidecar that says where the usable ones lie."""
    result_file = work / f"{plan.name}.json"
    if _finished(plan.name, folder, result_file):
        return dict(read_json(result_file))
    local, statistics = _local(plan.tar, data), Statistics(data.channels)
    rows: list[tuple[Any, ...]] = []
    seen: set[str] = set()
    with open(local, "rb") as file:
        for place, (key, members, member) in enumerate(_samples(local, plan)):
            shown = f"{plan.tar.location}: {key}"
            try:
                if member is None:
                    raise BadImage("no image", f"members {', '.join(members)}, none of a known image type")
                if key in seen:
                    raise BadImage("duplicate key", "an earlier sample of this shard has the same key")
                if place in plan.repeated:
                    raise BadImage("duplicate", "the same bytes as an earlier image")
                seen.add(key)
                extension, content = member.name.rpartition(".")[2].lower(), _read(file, member)
                image = transforms.decode(content, data.channels, data.background, data.max_pixels, extension)
            except BadImage as error:
                statistics.bad(shown, error)
                continue
            label = _label(_read(file, members["cls"]), shown, classes) if "cls" in members else -1
            meta = members.get("json") or members.get("txt")
            split = VAL if plan.tar.held_out else TRAIN
            if data.split.by != "shards":
                grouped = data.split.by != "key"
                known = _attributes(file, members.get("json"), shown) if grouped else {}
                split = _split(data, key, known, plan.fold_of)
            bucket = _bucket(image.size, data)
            kept = transforms.prepare(image, data, _shape(bucket, data))
            statistics.add(kept, image.size, label, split, bucket)
            rows.append(_row(key, member, meta, label, split, bucket, data))
    return _finish(plan.name, plan.tar.location, local, rows, statistics, folder, result_file, data)


def _label(content: bytes, shown: str, classes: list[str] | None) -> int:
    try:
        label = int(content)
    except ValueError:
        raise UserError(f"{shown}.cls holds {content[:20]!r}; expected a class number") from None
    if label < 0 or (classes is not None and label >= len(classes)):
        known = f"classes.json names {len(classes)} (0 to {len(classes) - 1})" if classes else "0 and up are expected"
        raise UserError(f"{shown}.cls: class {label} is out of range; {known}: correct the labels or the list")
    return label


def _attributes(file: Any, member: shards.Member | None, shown: str) -> dict[str, Any]:
    if member is None:
        return {}
    try:
        return dict(json.loads(_read(file, member)))
    except (ValueError, TypeError) as error:
        raise UserError(f"{shown}.json is no JSON object ({error})") from error


# ---- what a shard's task leaves --------------------------------------------------------------------------------------


def _row(
    key: str, image: shards.Member, meta: shards.Member | None, label: int, split: int, bucket: int, data: Data
) -> tuple[Any, ...]:
    """A row of a sidecar, as `index.row_type` has it."""
    meta_place = (meta.offset, meta.length) if meta else (0, 0)
    place = (bucket,) if data.buckets else ()
    return image.offset, image.length, label, split, *meta_place, *place, key.encode()


def _finished(name: str, folder: Path, result_file: Path) -> bool:
    return (folder / f"{name}.rows.npy").exists() and result_file.exists()


def _finish(
    name: str,
    location: str,
    tar: Path,
    rows: list[tuple[Any, ...]],
    statistics: Statistics,
    folder: Path,
    result_file: Path,
    data: Data,
) -> dict[str, Any]:
    """Write the task's result, then the sidecar, which proves the shard; the result is what the task returns."""
    sidecar = folder / f"{name}.rows.npy"
    part = result_file.with_suffix(".rows.npy")
    write_rows(part, rows, bucketed=data.buckets is not None)
    numbers = range(len(data.shapes))
    by_bucket = {"train": TRAIN, "val": VAL}
    buckets = {name: [statistics.buckets[split][b] for b in numbers] for name, split in by_bucket.items()}
    result = {
        "shard": {
            "name": name,
            "location": location,
            "sha256": sha256_file(tar),
            "bytes": tar.stat().st_size,
            "rows_sha256": sha256_file(part),
            "train": statistics.counts[TRAIN],
            "val": statistics.counts[VAL],
            **({"buckets": buckets} if data.buckets else {}),
        },
        "train": statistics.counts[TRAIN],
        "val": statistics.counts[VAL],
        "quarantine": statistics.quarantine,
        "labels": [{str(k): v for k, v in counter.items()} for counter in statistics.labels],
        "sizes": dict(statistics.sizes),
        "pixels": statistics.pixels,
        "sums": statistics.sums,
        "squares": statistics.squares,
    }
    write_json(result_file, result)
    part.replace(sidecar)
    return result


def _log(summary: dict[str, Any], sheet: np.ndarray[Any, Any], folder: Path, data: Data, spool: Spool) -> None:
    """The data report for the tracker: counts, the contact sheet, the files, the data set's name and digest."""
    counts = {f"ingest/{split}_images": count for split, count in summary["images"].items()}
    for row in summary.get("buckets", []):
        counts |= {f"ingest/{split}_images_{text(row['shape'])}": row[split] for split in ("train", "val")}
    spool.metrics({**counts, "ingest/quarantined": summary["quarantined"], "ingest/shards": summary["shards"]}, 0)
    spool.image("data/contact_sheet", sheet, 0)
    for name in ("report.json", "quarantine.jsonl", "contact_sheet.png"):
        spool.file(folder / name, "data")
    where = getattr(data.source, "path", "scikit-learn digits" if data.source.kind == "digits" else data.source.kind)
    name = Path(where).parent.name if data.source.kind in ("webdataset", "table") else Path(where).name
    spool.dataset(name, summary["digest"], where)
