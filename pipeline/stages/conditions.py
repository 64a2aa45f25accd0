"""Stage `conditions`: what the model is told about each image besides its class, gathered from the columns of the data
set into arrays that a training reads by slices; captions through their encoder, where that is frozen; pictures as maps
on the latents' grid. Only of a config that names any of these.

What a shard of them holds is in `data/condition_shards.py`, `data/caption_shards.py` and `data/map_shards.py`; it lies
in a pool that all runs share, so that a changed image shard costs one of them, and a restart embeds only what is
missing. Pictures that cannot be read count as missing, are listed in quarantine.jsonl, and end the run where they are
more than `data.max_quarantine` allows, as images do in ingest.
"""

from __future__ import annotations

import json
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact, Writer
from pipeline.config import Config
from pipeline.data.condition_report import lines, merged
from pipeline.data.map_sources import content, located
from pipeline.data.sources import digests_folder_of
from pipeline.data.split import SPLITS
from pipeline.data.text_encoders import frozen_encoder
from pipeline.errors import UserError, many
from pipeline.files import atomic_write, write_json
from pipeline.networks import latent_side
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster
    from pipeline.cluster.inline import Inline
    from pipeline.data.caption_shards import Embed
    from pipeline.data.text_encoders import Frozen
    from pipeline.schema.data import Data
    from pipeline.tracking.tracker import Spool

MOST_VALUES = 1000  # of an attribute: more are a caption, or a number


def recipe(config: Config) -> dict[str, Any]:
    """What decides on the rows besides the data: not how often a condition is withheld."""
    values = result_fields(config.diffusion.condition)
    attributes = {name: _without_drop(own) for name, own in values.get("attributes", {}).items()}
    caption = {"tokens": values["caption"]["tokens"]} if values.get("caption") else None
    if caption and (encoder := frozen_encoder(config)):
        caption["encoder"] = {key: encoder[key] for key in ("kind", "digest")}
    label = getattr(config.data.source, "label", None)
    return {"attributes": attributes, "caption": caption, "label": label, **_pictures(config)}


def _pictures(config: Config) -> dict[str, Any]:
    """The part of the recipe of spatial conditions, pictures by content, not by path; nothing where there are none."""
    spatial = asked(config)["spatial"]
    if not spatial:
        return {}
    folder = digests_folder_of(config.run.root)
    return {"spatial": {name: {**o, "files": content(config.data, o["column"], folder)} for name, o in spatial.items()}}


def run(
    config: Config, inputs: dict[str, Artifact], writer: Writer, cluster: Cluster | Inline, spool: Spool
) -> dict[str, Any]:
    """Gather what the pool lacks, merge the lists of values, write `shards.json`."""
    from pipeline.data.index import Index

    pool = writer.path.parent.parent.parent / "conditions"
    pool.mkdir(parents=True, exist_ok=True)
    jobs: list[dict[str, Any]] = []
    for split in SPLITS:
        for index in Index.open(inputs["ingest"].path, split, config.data.cache).parts:
            bucket = {} if index.bucket is None else {"bucket": index.bucket}
            jobs += [{"split": split, **bucket, "shard": s} for s, count in enumerate(index.counts) if count]
    condition = asked(config)
    spatial, pictures = condition["spatial"], _pictures(config)
    tasks = with_locations(config, inputs["ingest"], jobs, spatial)
    encoder = (condition["caption"] or {}).get("encoder")
    if encoder:
        jobs.append({"split": "", "empty": True})
        tasks.append(jobs[-1])
    threads = config.cluster.least_threads
    setup = partial(
        open_data, str(inputs["ingest"].path), str(pool), condition, config.data.model_dump(mode="json"), threads
    )
    records = []
    for done, record in enumerate(cluster.map(gather, tasks, threads=threads, setup=setup, gpus=int(bool(encoder))), 1):
        writer.lease.check()
        records.append(record)
        spool.metrics({"conditions/shards": float(done)}, done)
        if encoder:
            print(f"conditions: captions of {done} of {len(jobs)} shards are embedded ({encoder['kind']})", flush=True)
    empty = [records.pop()] if encoder else []
    nothing = opened_empty(pool / empty[0]["file"]) if empty else None
    options = options_of(condition, config, records, nothing)
    maps = [record["maps"] for record in records if "maps" in record]
    seen, images = merged(record["seen"] for record in records), sum(record["count"] for record in records)
    bad = [one for found in maps for one in found["bad"]]
    for name in spatial:
        told = sum(found["told"][name] for found in maps)
        seen[name] = {"told": told, "bad": sum(one[0] == name for one in bad)}
    if pictures != _pictures(config):
        raise UserError("`diffusion.condition.spatial`: pictures changed while they were read: run again")
    if spatial:
        quarantine(config.data, writer.path, bad, sum(seen[name]["told"] for name in spatial))
    check(seen, condition, {column for record in records for column in record["columns"]})
    embedded = [record["embedded"] for record in records if "embedded" in record]
    cut = sum(record["cut"] for record in embedded or records)
    for line in lines(seen, images, cut):
        print(f"conditions: {line}", flush=True)
    spool.note("\n".join(f"- {line}" for line in lines(seen, images, cut)))
    listed = ("file", "bytes", "sha256", "count", "values")
    shards = [{**job, **{key: r[key] for key in listed}} for job, r in zip(jobs, records, strict=False)]
    for job, record in zip(jobs, [*embedded, *empty], strict=False):
        shards.append({**job, "embeds": True, **{key: record[key] for key in listed[:-1]}})
    for job, found in zip(jobs, maps, strict=False):
        shards.append({**job, "maps": True, **{key: found[key] for key in listed[:-1]}})
    write_json(writer.path / "shards.json", {"pool": "conditions", "shards": shards})
    return {
        **options,
        **({"spatial": spatial} if spatial else {}),
        "told": {name: found["told"] for name, found in seen.items()},
        "seen": seen,
        "images": images,
        "captions": sum(record["captions"] for record in records),
        "cut": cut,
        "bytes": sum(record["bytes"] for record in [*records, *embedded, *maps]),
        **({"payload": sum(record["payload"] for record in embedded)} if embedded else {}),
    }


def check(seen: dict[str, Any], condition: dict[str, Any], columns: set[str]) -> None:
    """UserError where no image has a value of something that the model is to be told. columns: all there are."""
    for name, found in seen.items():
        if not found["told"]:
            raise UserError(_missing(name, condition, ", ".join(sorted(columns)) or "none"))


def asked(config: Config) -> dict[str, Any]:
    """The conditions as a worker takes them, plain values, each attribute with its column."""
    section = config.diffusion.condition
    attributes = {
        name: {**own.model_dump(mode="json", exclude={"drop"}), "column": own.column or name}
        for name, own in section.attributes.items()
    }
    caption: dict[str, Any] | None = {"tokens": section.caption.tokens} if section.caption else None
    if caption and (encoder := frozen_encoder(config)):
        caption["encoder"] = encoder
    grid = {"side": latent_side(config), "background": list(config.data.background)} if section.spatial else {}
    pictures = section.spatial.items()
    spatial = {
        name: {"column": own.column or name, "channels": own.channels, **grid}
        | ({"detail": own.detail} if own.detail > 1 else {})
        for name, own in pictures
    }
    label = getattr(config.data.source, "label", None)
    return {"attributes": attributes, "caption": caption, "label": label, "spatial": spatial}


def with_locations(
    config: Config, data: Artifact, jobs: list[dict[str, Any]], spatial: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """The jobs with the places of their samples' pictures, where a table says them."""
    from pipeline.data.index import Index

    if not spatial or config.data.source.kind != "table":
        return list(jobs)
    places = {name: located(config.data, own["column"]) for name, own in spatial.items()}
    index = {split: Index.open(data.path, split, config.data.cache) for split in SPLITS}
    several = []
    for job in jobs:
        keys = [index[job["split"]].key(i) for i in index[job["split"]].samples_of(job["shard"])]
        several.append({**job, "pictures": {name: [of.get(key) for key in keys] for name, of in places.items()}})
    return several


def quarantine(data: Data, folder: Path, bad: list[list[str]], read: int) -> None:
    """Write the list of pictures that cannot be used: [condition, picture, reason, detail]; UserError for too many of
    them. read: how many can be."""
    entries = [dict(zip(("condition", "key", "reason", "detail"), one, strict=True)) for one in bad]
    atomic_write(folder / "quarantine.jsonl", "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in entries))
    if not bad:
        return
    said = f"{len(bad):,} of {len(bad) + read:,} pictures cannot be used, the first: {': '.join(bad[0])}"
    if len(bad) > data.max_quarantine * (len(bad) + read):
        raise UserError(
            f"`diffusion.condition.spatial`: {said}; mend them (all are in {folder / 'quarantine.jsonl'}), or raise "
            f"`data.max_quarantine` ({data.max_quarantine:g})"
        )
    print(f"conditions: {said}; their images are told none", flush=True)


def open_data(data: str, pool: str, condition: dict[str, Any], images: dict[str, Any], threads: int) -> dict[str, Any]:
    """What an actor keeps: the open indices, and how captions are embedded."""
    from pipeline.data.index import Index
    from pipeline.schema.data import Data

    cache = Data.model_validate(images).cache
    index = {split: Index.open(data, split, cache).parts for split in SPLITS}
    return {
        "index": index,
        "pool": Path(pool),
        "condition": condition,
        "embed": embedder(condition["caption"], threads),
        "max_pixels": images["max_pixels"],
    }


def embedder(caption: dict[str, Any] | None, threads: int) -> Embed | None:
    """What embeds captions: the frozen encoder, loaded when it is first called; None where none reads them."""
    if not caption or "encoder" not in caption:
        return None

    @lru_cache(maxsize=1)
    def loaded() -> Frozen:
        import torch

        from pipeline.data.text_encoders import Frozen

        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = False
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return Frozen(caption["encoder"], caption["tokens"], device)

    return lambda texts: loaded()(texts)


def gather(state: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """The record of one image shard's conditions, which are in the pool then; `embedded`: that of its captions, `maps`:
    that of its pictures."""
    from pipeline.data import caption_shards, map_shards, map_sources
    from pipeline.data.captions import captions_of
    from pipeline.data.condition_shards import columns_of, write

    caption, embed = state["condition"]["caption"], state["embed"]
    if job.get("empty"):
        return caption_shards.write(state["pool"], caption["encoder"], caption["tokens"], [[""]], embed)
    index, label = state["index"][job["split"]][job.get("bucket", 0)], state["condition"]["label"]
    columns = [columns_of(index, i, label) for i in index.samples_of(job["shard"])]
    record = write(state["pool"], state["condition"], columns)
    if spatial := state["condition"]["spatial"]:
        of = {name: own["column"] for name, own in spatial.items()}
        if "pictures" in job:
            pictures = {name: map_sources.of_table(of[name], job["pictures"][name]) for name in of}
        else:
            pictures = map_sources.of_tar(index, job["shard"], of)
        record = {**record, "maps": map_shards.write(state["pool"], spatial, pictures, state["max_pixels"])}
    if embed is None:
        return record
    texts = [captions_of(meta.get("caption")) for meta in columns]
    embedded = caption_shards.write(state["pool"], caption["encoder"], caption["tokens"], texts, embed)
    return {**record, "embedded": embedded}


def opened_empty(path: Path) -> dict[str, str]:
    """The empty caption's embedding, as a model has it."""
    from pipeline.data.array_files import mapped
    from pipeline.data.caption_shards import packed, read

    found = read(mapped(path), 0, 0.0)
    assert found is not None
    return packed(found)


def headline(summary: dict[str, Any]) -> str:
    parts = [f"{name} ({many(len(own['values']), 'value')})" if "values" in own else name
             for name, own in summary["attributes"].items()]  # fmt: skip
    parts += [f"{name} (pictures)" for name in summary.get("spatial", {})]
    if summary["caption"]:
        parts.append(many(summary["captions"], "caption"))
    return f"{many(summary['images'], 'image')}: {', '.join(parts)}"


def _without_drop(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "drop"}


def options_of(
    condition: dict[str, Any], config: Config, records: list[dict[str, Any]], empty: dict[str, str] | None = None
) -> dict[str, Any]:
    """The conditions as a model has them: each attribute with all its values or its range, the caption with its
    length: as long as the longest there is, at most what the config allows. empty: the empty caption as a frozen
    encoder read it."""
    from pipeline.data.condition_shards import merged_values

    attributes: dict[str, Any] = {}
    for name, own in condition["attributes"].items():
        kept = {key: value for key, value in own.items() if value is not None}
        if own["kind"] != "continuous":
            found = merged_values(records, name)
            kept["values"] = _values(name, found, own["values"])
        attributes[name] = kept
    section = config.diffusion.condition.caption
    if section is None:
        return {"attributes": attributes, "caption": None}
    if empty:
        longest = max((record["embedded"]["longest"] for record in records), default=0)
        caption = {"tokens": 8 * -(-max(longest, 2) // 8), "encoder": condition["caption"]["encoder"], "empty": empty}
        return {"attributes": attributes, "caption": caption}
    longest = max((record["longest"] for record in records), default=0)
    tokens = min(section.tokens, 8 * -(-(longest + 1) // 8))
    return {"attributes": attributes, "caption": {"tokens": tokens, "encoder": section.encoder.model_dump()}}


def _values(name: str, found: list[str], given: list[str] | None) -> list[str]:
    where = f"`diffusion.condition.attributes.{name}`"
    if given is not None:
        if unknown := sorted(set(found) - set(given)):
            raise UserError(f"{where}: the images have {unknown[0]!r}, which is none of its `values`; add it")
        return list(given)
    if len(found) > MOST_VALUES:
        raise UserError(
            f"{where}: {len(found):,} different values, {MOST_VALUES:,} at most; a number is kind continuous, a "
            "sentence is `caption`"
        )
    return found


def _missing(name: str, condition: dict[str, Any], there: str) -> str:
    if name == "caption":
        return f"`diffusion.condition.caption`: no image has one; name its column (`data.source.caption`), of: {there}"
    if name in condition["spatial"]:
        column = condition["spatial"][name]["column"]
        return f"`diffusion.condition.spatial.{name}`: no image has a picture {column!r} that can be read"
    column = condition["attributes"][name]["column"]
    return f"`diffusion.condition.attributes.{name}`: no image has a value of {column!r}; there are: {there}"
