"""Tars that stay where they are: hashed and decoded once, so that a sidecar says where each usable image lies."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import array_members, shards, tars, transforms, twins
from pipeline.data.cache import local_copy
from pipeline.data.folders import unread
from pipeline.data.generated import marked, may_be_marked
from pipeline.data.held_out import group_of, split_of
from pipeline.data.listing import LeftOut, plain
from pipeline.data.look_through import WORDS, animated
from pipeline.data.report import TRAIN, VAL, Statistics
from pipeline.data.shard_result import bucket_number, bucket_shape, finish, finished, sidecar_row
from pipeline.data.tars import Tar
from pipeline.data.transforms import BadImage, Bands
from pipeline.errors import UserError
from pipeline.files import atomic_path, read_json
from pipeline.schema.data import Data

if TYPE_CHECKING:
    pass

LATER = ("avif", "jfif", "jpe", *transforms.HEIF)


@dataclass(frozen=True)
class TarPlan:
    """One foreign tar to index.

    repeated: places in it of images that an earlier place holds already. repeats: places of images with the pixels of
    an earlier one, and that one's key. chosen: places of the samples that are taken, with `data.limit`; the others
    count as if they were not there, and places are of those that are taken.
    """

    name: str
    tar: Tar
    repeated: frozenset[int] = frozenset()
    fold_of: Mapping[str, int] = field(default_factory=dict)  # of each group, with `data.split.by: fold`
    repeats: Mapping[int, str] = field(default_factory=dict)
    chosen: frozenset[int] | None = None
    image: str | None = None  # `data.source.image`


def samples_of(
    path: Path, shown: str, left_out: LeftOut | None = None, image: str | None = None
) -> Iterator[tuple[str, dict[str, shards.Member], shards.Member | None]]:
    """(key, members by extension, the image member) of each sample of a tar; `left_out` counts what is not taken.
    image: the extension of the image member; None: the first that is an image."""
    left = LeftOut() if left_out is None else left_out
    for key, members in shards.samples(shards.scan(path, shown), left):
        images = []
        for name, member in members.items():
            last = name.rpartition(".")[2]
            if last in transforms.FORMATS:
                images.append(member)
            elif last == "cls" and "cls" not in members:
                left.add(
                    "members that end in .cls but are not `cls`, so that no class is read: a key ends at the first dot",
                    member.name,
                )
            elif (reason := unread(last)) is not None:
                left.add(reason, member.name)
        # what was not read in earlier versions comes last: a JPEG beside an AVIF stays the image of its sample
        images.sort(key=lambda member: member.name.rpartition(".")[2].lower() in LATER)
        if image:
            images = [members[image.lower()]] if image.lower() in members else []
        if len(images) > 1:
            left.add(
                "images more in a sample than the one that is read: a key ends at the first dot",
                images[1].name,
                len(images) - 1,
            )
        yield plain(key), members, images[0] if images else None


def taken(
    plan: TarPlan, local: Path, left_out: LeftOut | None = None
) -> Iterator[tuple[str, dict[str, shards.Member], shards.Member | None]]:
    """The samples of a plan's tar that `data.limit` leaves."""
    for place, sample in enumerate(samples_of(local, plan.tar.location, left_out, plan.image)):
        if plan.chosen is None or place in plan.chosen:
            yield sample


def hash_tar(plan: TarPlan, data: Data, work: Path) -> np.ndarray[Any, Any]:
    """16 bytes of SHA-256 of each sample's image, as V16 [n]; kept in work/, so that a restart reads no tar again."""
    path = work / f"{plan.name}.bytes.npy"
    if path.exists():
        return np.load(path)  # type: ignore[no-any-return]
    local = _local(plan.tar, data)
    with open(local, "rb") as file:
        found = []
        for key, _, image in taken(plan, local):
            content = read_member(file, image) if image else f"{plan.name}/{key}".encode()
            found.append(hashlib.sha256(content).digest()[:16])
    digests = np.frombuffer(b"".join(found), "S16")
    with atomic_path(path) as temporary, open(temporary, "wb") as out:
        np.save(out, digests)
    return digests


def tar_strata(plan: TarPlan, data: Data) -> list[tuple[str, str]]:
    """(key, what it is chosen by: its split where tars decide on it, and its class) of each sample of a tar."""
    local = _local(plan.tar, data)
    with open(local, "rb") as file:
        return [
            (key, f"{plan.tar.held_out} {read_member(file, members['cls']).hex() if 'cls' in members else None}")
            for key, members, _ in taken(plan, local)
        ]


def tar_groups(plan: TarPlan, data: Data) -> Counter[str]:
    """Images of each group (value of `data.split.column`) in a tar, without those that an earlier place holds."""
    local = _local(plan.tar, data)
    found: Counter[str] = Counter()
    with open(local, "rb") as file:
        for place, (key, members, image) in enumerate(taken(plan, local)):
            shown = f"{plan.tar.location}: {key}"
            if image and place not in plan.repeated and not _generated(file, members.get("json"), shown):
                found[group_of(data, key, attributes_of(file, members.get("json"), shown))] += 1
    return found


def _local(tar: Tar, data: Data) -> Path:
    if tars.is_remote(tar.location):
        return local_copy(tar.location, None, data.cache, tar.identity)
    return Path(tar.location)


def read_member(file: Any, member: shards.Member) -> bytes:
    """The bytes of a member of an open tar."""
    file.seek(member.offset)
    return bytes(file.read(member.length))


def index_tar(plan: TarPlan, data: Data, classes: list[str] | None, folder: Path, work: Path) -> dict[str, Any]:
    """Decode each image of a tar once, and write the sidecar that says where the usable ones lie."""
    result_file = work / f"{plan.name}.json"
    if finished(plan.name, folder, result_file):
        return dict(read_json(result_file))
    counted = bool(data.values and data.values.percentiles)
    local, statistics = _local(plan.tar, data), Statistics(data.channels, counted)
    rows: list[tuple[Any, ...]] = []
    seen: set[str] = set()
    pixels: list[tuple[bytes, str]] = []
    left_out = LeftOut()
    with open(local, "rb") as file:
        for place, (key, members, member) in enumerate(taken(plan, local, left_out)):
            shown = plain(f"{plan.tar.location}: {key}")
            try:
                if member is None:
                    raise BadImage("no image", f"members {', '.join(members)}, none of a known image type")
                if key in seen:
                    raise BadImage("duplicate key", "an earlier sample of this shard has the same key")
                if place in plan.repeated:
                    raise BadImage("duplicate", "the same bytes as an earlier image")
                seen.add(key)
                if place in plan.repeats:
                    raise BadImage("duplicate", f"the same pixels as {plan.repeats[place]}")
                extension, content = member.name.rpartition(".")[2].lower(), read_member(file, member)
                image: Any
                if data.values is not None:
                    image = Bands(array_members.values_of(content, data))
                else:
                    image = transforms.decode(content, data.channels, data.background, data.max_pixels, extension)
                    if animated(content):
                        left_out.add(WORDS, key)
            except BadImage as error:
                statistics.bad(shown, error)
                pixels.append((twins.NONE, shown))
                continue
            pixels.append((twins.pixel_digest(image), shown))
            label = label_of(read_member(file, members["cls"]), shown, classes) if "cls" in members else -1
            meta = members.get("json") or members.get("txt")
            split, generated = VAL if plan.tar.held_out else TRAIN, _generated(file, members.get("json"), shown)
            if generated:
                split = TRAIN
            elif data.split.by != "shards":
                grouped = data.split.by != "key"
                known = attributes_of(file, members.get("json"), shown) if grouped else {}
                split = split_of(data, key, known, plan.fold_of)
            bucket = bucket_number(image.size, data)
            kept = transforms.prepare(image, data, bucket_shape(bucket, data))
            statistics.add(kept, image.size, label, split, bucket, generated)
            rows.append(sidecar_row(key, member, meta, label, split, bucket, data))
    if not plan.repeats:  # else they are there from the first time
        twins.save(twins.path_of(plan.name, work), pixels)
    return finish(
        plan.name, plan.tar.location, local, rows, statistics, folder, result_file, data, plan.repeats, left_out
    )


def label_of(content: bytes, shown: str, classes: list[str] | None) -> int:
    """The class number that a member .cls holds. UserError for none, and for one that `classes` do not have."""
    try:
        label = int(content)
    except ValueError:
        raise UserError(f"{shown}.cls holds {content[:20]!r}; expected a class number") from None
    if label < 0 or (classes is not None and label >= len(classes)):
        known = f"classes.json names {len(classes)} (0 to {len(classes) - 1})" if classes else "0 and up are expected"
        raise UserError(f"{shown}.cls: class {label} is out of range; {known}: correct the labels or the list")
    return label


def _generated(file: Any, member: shards.Member | None, shown: str) -> bool:
    """Whether a sample's JSON says that a model made its image."""
    return (
        member is not None and may_be_marked(read_member(file, member)) and marked(attributes_of(file, member, shown))
    )


def attributes_of(file: Any, member: shards.Member | None, shown: str) -> dict[str, Any]:
    """The object that a .json member holds. UserError for another thing."""
    if member is None:
        return {}
    try:
        return dict(json.loads(read_member(file, member)))
    except (ValueError, TypeError) as error:
        raise UserError(f"{shown}.json is no JSON object ({error})") from error
