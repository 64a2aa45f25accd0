"""Stage `conditions`: what the model is told about each image besides its class, gathered from the columns of the data
set into arrays that a training reads by slices; captions through their encoder, where that is frozen. Only of a config
that names attributes or captions.

What a shard of them holds is in `data/condition_shards.py` and `data/caption_shards.py`; it lies in a pool that all
runs share, so that a changed image shard costs one of them, and a restart embeds only what is missing.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact, Writer
from pipeline.config import Config
from pipeline.data.condition_report import lines, merged
from pipeline.data.split import SPLITS
from pipeline.data.text_encoders import frozen_encoder
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster
    from pipeline.cluster.inline import Inline
    from pipeline.data.caption_shards import Embed
    from pipeline.data.text_encoders import Frozen
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
    return {"attributes": attributes, "caption": caption, "label": label}


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
    encoder = (condition["caption"] or {}).get("encoder")
    if encoder:
        jobs.append({"split": "", "empty": True})
    threads = config.cluster.least_threads
    setup = partial(
        open_data, str(inputs["ingest"].path), str(pool), condition, config.data.model_dump(mode="json"), threads
    )
    records = []
    for done, record in enumerate(cluster.map(gather, jobs, threads=threads, setup=setup, gpus=int(bool(encoder))), 1):
        writer.lease.check()
        records.append(record)
        spool.metrics({"conditions/shards": float(done)}, done)
        if encoder:
            print(f"conditions: shard {done} of {len(jobs)} embedded by {encoder['kind']}", flush=True)
    empty = [records.pop()] if encoder else []
    nothing = opened_empty(pool / empty[0]["file"]) if empty else None
    options = options_of(condition, config, records, nothing)
    seen, images = merged(record["seen"] for record in records), sum(record["count"] for record in records)
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
    write_json(writer.path / "shards.json", {"pool": "conditions", "shards": shards})
    return {
        **options,
        "told": {name: found["told"] for name, found in seen.items()},
        "seen": seen,
        "images": images,
        "captions": sum(record["captions"] for record in records),
        "cut": cut,
        "bytes": sum(record["bytes"] for record in [*records, *embedded]),
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
    return {"attributes": attributes, "caption": caption, "label": getattr(config.data.source, "label", None)}


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
    """The record of one image shard's conditions, which are in the pool then; `embedded`: that of its captions."""
    from pipeline.data import caption_shards
    from pipeline.data.captions import captions_of
    from pipeline.data.condition_shards import columns_of, write

    caption, embed = state["condition"]["caption"], state["embed"]
    if job.get("empty"):
        return caption_shards.write(state["pool"], caption["encoder"], caption["tokens"], [[""]], embed)
    index, label = state["index"][job["split"]][job.get("bucket", 0)], state["condition"]["label"]
    columns = [columns_of(index, i, label) for i in index.samples_of(job["shard"])]
    record = write(state["pool"], state["condition"], columns)
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
    parts = [f"{name} ({len(own['values'])} values)" if "values" in own else name
             for name, own in summary["attributes"].items()]  # fmt: skip
    if summary["caption"]:
        parts.append(f"{summary['captions']:,} captions")
    return f"{summary['images']:,} images: {', '.join(parts)}"


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
    column = condition["attributes"][name]["column"]
    return f"`diffusion.condition.attributes.{name}`: no image has a value of {column!r}; there are: {there}"
