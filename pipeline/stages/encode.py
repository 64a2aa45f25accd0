"""Stage 3, encode: every image once through the autoencoder; its moments, cached as latent shards, and statistics.

A latent shard belongs to one image shard (with buckets: to what a split has of a bucket in it) and lies in a pool that
all runs share, named by what it is made of: the image shard's bytes and rows, the autoencoder's content, the views. A
changed image shard costs one encoded shard, and a restart encodes only what is missing. Drawing and normalising are
left to `latents.py`, reading to `data/loader.py`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts import Artifact, Writer
from pipeline.config import Config
from pipeline.data import clips
from pipeline.data.latent_pool import entry_path, is_whole
from pipeline.data.split import SPLITS
from pipeline.errors import UserError, many
from pipeline.files import atomic_write, digest, read_json, write_json
from pipeline.schema.section import result_fields
from pipeline.tasks.encoding import encode_shard, load_encoder

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster
    from pipeline.cluster.inline import Inline
    from pipeline.data.latents import LatentSpace
    from pipeline.data.value_map import ValueMap
    from pipeline.schema.data import Data, Shape
    from pipeline.tracking.tracker import Spool


def recipe(config: Config) -> dict[str, Any]:
    """What decides on the latents besides the data and the autoencoder."""
    from pipeline.data.index import skip_recipe

    return {**result_fields(config.latents), **skip_recipe(config.data), **clips.order_recipe(config.data)}


def run(
    config: Config, inputs: dict[str, Artifact], writer: Writer, cluster: Cluster | Inline, spool: Spool
) -> dict[str, Any]:
    """Encode what the pool lacks, merge the statistics in shard order, write `shards.json` and `latents.json`."""
    import time

    from pipeline.data import latents
    from pipeline.data.index import Index

    data, autoencoder = inputs["ingest"], inputs["autoencoder"]
    pool = writer.path.parent.parent.parent / "latents"
    pool.mkdir(parents=True, exist_ok=True)
    if values := Index.open(data.path, "train").values:
        _check_values(values.json(), autoencoder)
    pixels = seen(config.data, values)
    moments = {key: value for key, value in recipe(config).items() if key != "statistics"}  # these are not scaled
    jobs: list[dict[str, Any]] = []
    for split in SPLITS:
        for index in Index.open(data.path, split, config.data.cache).parts:
            bucket = {} if index.bucket is None else {"bucket": index.bucket}
            shape = [] if index.bucket is None else [list(index.shapes[index.bucket])]
            for shard in range(len(index.counts)):
                if index.counts[shard]:
                    key = digest([index.shard_digest(shard), autoencoder.content, moments, pixels, *shape])
                    jobs.append(
                        {
                            "split": split,
                            **bucket,
                            "shard": shard,
                            "count": int(index.counts[shard]),
                            "path": str(pool / f"{key[:32]}.tar"),
                        }
                    )
    missing = [job for job in jobs if not is_whole(Path(job["path"]))]
    begun, images = time.monotonic(), 0
    threads = config.cluster.least_threads
    setup = partial(
        load_encoder,
        str(data.path),
        str(autoencoder.path),
        config.latents.model_dump(),
        config.data.model_dump(mode="json"),
        threads,
    )
    for done, count in enumerate(cluster.map(encode_shard, missing, threads=threads, setup=setup, gpus=1), 1):
        writer.lease.check()
        images += count
        rate = images / (time.monotonic() - begun)
        spool.metrics({"encode/images_per_second": rate}, done)
        print(f"encode: shard {done} of {len(missing)}, {rate:.0f} {config.data.noun}s/s", flush=True)
    entries = [{**job, "lost": [], **read_json(entry_path(job["path"]))} for job in jobs]
    listed = ("split", "bucket", "shard", "count", "bytes", "sha256")
    shards = [{k: e[k] for k in listed if k in e} | {"file": Path(e["path"]).name} for e in entries]
    if config.latents.statistics == "autoencoder":
        space = latents.LatentSpace.load(autoencoder.path / latents.BROUGHT)
    else:
        space = _scalable(latents.merge(e["sums"] for e in entries if e["split"] == "train"), autoencoder)
    lost = {key: why for entry in entries for key, why in entry["lost"]}
    if lost:
        atomic_write(writer.work / "lost.txt", "".join(f"{key}\n" for key in lost))
        print(f"encode: other images stand for {len(lost)} ({next(iter(lost.values()))}): {writer.work / 'lost.txt'}")
    write_json(writer.path / "shards.json", {"pool": "latents", "shards": shards})
    space.save(writer.path / "latents.json")
    channels, sides = entries[0]["shape"][0] // 2, entries[0]["shape"][1:]
    buckets: dict[str, Any] = {}
    if config.data.buckets is not None:
        factor = config.data.shapes[entries[0]["bucket"]][0] // sides[0]
        sides = [config.data.size // factor] * 2
        buckets = {"buckets": [_bucket(entries, b, shape, factor) for b, shape in enumerate(config.data.shapes)]}
    return {
        "shape": [channels, *sides],
        **buckets,
        "images": {split: sum(e["count"] for e in entries if e["split"] == split) for split in SPLITS},
        "views": list(config.latents.views),
        "shards": len(jobs),
        "encoded": len(missing),
        "lost": len(lost),
        "bytes": sum(e["bytes"] for e in entries),
        "mean": space.mean.tolist(),
        "std": space.std.tolist(),
    }


def seen(data: Data, values: ValueMap | None) -> dict[str, Any]:
    """What decides on what the encoder sees of a shard, besides its bytes, the views and where windows of clips lie
    (`recipe`): a part of the pool's keys. What decides on which samples a shard has, and how, is in its bytes."""
    fields = result_fields(data)
    pixels = {name: fields[name] for name in ("size", "channels", "background", "augment")}
    if values is not None:  # shards hold values, and this what these are to the encoder
        pixels["values"] = values.json()
    if data.clip is not None:  # shards hold all frames of a clip that is taken, at its rate
        pixels["clip"] = {"frames": data.clip.frames}
    if data.sound is not None:  # what spectrograms of the shards' sounds are; `dtype` is of samples' files
        pixels["sound"] = {name: value for name, value in fields["sound"].items() if name != "dtype"}
    return pixels


def _check_values(values: dict[str, Any], autoencoder: Artifact) -> None:
    """UserError for a pinned autoencoder to which -1 and 1 were other values."""
    known = read_json(autoencoder.path / "model.json").get("values", values)
    other = [key for key in ("dtype", "low", "high") if known[key] != values[key]]
    if other:
        raise UserError(
            f"{autoencoder.path}: trained on {', '.join(f'{key} {known[key]}' for key in other)}, and `data.values` "
            f"gives {', '.join(f'{values[key]}' for key in other)}; give the same `range`, or train another autoencoder"
        )


def _scalable(space: LatentSpace, autoencoder: Artifact) -> LatentSpace:
    """The space with a deviation of 1 for channels that are constant, which says so. UserError where all are."""
    import torch

    from pipeline.data.latents import LatentSpace

    mean, std = space.mean.numpy(), space.std.numpy()
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise UserError(f"{autoencoder.path}: the autoencoder gives latents that are not finite; train it again")
    flat = std == 0
    if flat.all():
        raise UserError(
            f"{autoencoder.path}: the latents of all training images are alike, there is nothing to learn; give images "
            "that differ, or train the autoencoder again"
        )
    if flat.any():
        channels = ", ".join(map(str, np.flatnonzero(flat)))
        print(f"encode: {flat.sum()} of {len(flat)} latent channels are constant ({channels}): not scaled", flush=True)
    return LatentSpace(space.mean, torch.from_numpy(np.where(flat, np.float32(1), std)))


def _bucket(entries: list[dict[str, Any]], bucket: int, shape: Shape, factor: int) -> dict[str, Any]:
    """Shape [h, w] of a bucket's latents, and how many it has of each split."""
    own = [entry for entry in entries if entry["bucket"] == bucket]
    counts = {split: sum(entry["count"] for entry in own if entry["split"] == split) for split in SPLITS}
    return {"shape": [pixels // factor for pixels in shape], **counts}


def headline(summary: dict[str, Any]) -> str:
    shape = "x".join(map(str, summary["shape"]))
    if "buckets" in summary:
        filled = sum(bool(row["train"] or row["val"]) for row in summary["buckets"])
        shape = f"of {summary['shape'][0]} channels in {many(filled, 'bucket')}"
    count = sum(summary["images"].values())
    return f"{many(count, 'latent')} {shape}, {summary['encoded']} of {many(summary['shards'], 'shard')} encoded"
