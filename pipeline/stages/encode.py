"""Stage 3, encode: every image once through the autoencoder; its moments, cached as latent shards, and statistics.

A latent shard belongs to one image shard (with buckets: to what a split has of a bucket in it) and lies in a pool that
all runs share, named by what it is made of: the image shard's bytes and rows, the autoencoder's content, the views. A
changed image shard costs one encoded shard, and a restart encodes only what is missing. Drawing and normalising are
left to `latents.py`, reading to `data/loader.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts import Artifact, Writer
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import atomic_write, digest, read_json, sha256_file, write_json
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    from pipeline.cluster import Cluster, Inline
    from pipeline.data.latent_shards import LatentBuckets, LatentIndex
    from pipeline.schema.data import Shape
    from pipeline.tracking import Spool

INPUTS = ("ingest", "autoencoder")
SPLITS = ("train", "val")


def recipe(config: Config) -> dict[str, Any]:
    """What decides on the latents besides the data and the autoencoder."""
    from pipeline.data.index import skip_recipe

    return {**result_fields(config.latents), **skip_recipe(config.data)}


def run(
    config: Config, inputs: dict[str, Artifact], writer: Writer, cluster: Cluster | Inline, spool: Spool
) -> dict[str, Any]:
    """Encode what the pool lacks, merge the statistics in shard order, write `shards.json` and `latents.json`."""
    import time

    from pipeline import latents
    from pipeline.data.index import Index

    data, autoencoder = inputs["ingest"], inputs["autoencoder"]
    pool = writer.path.parent.parent.parent / "latents"
    pool.mkdir(parents=True, exist_ok=True)
    pixels = {name: result_fields(config.data)[name] for name in ("size", "channels", "background", "augment")}
    jobs: list[dict[str, Any]] = []
    for split in SPLITS:
        for index in Index.open(data.path, split, config.data.cache).parts:
            bucket = {} if index.bucket is None else {"bucket": index.bucket}
            shape = [] if index.bucket is None else [list(index.shapes[index.bucket])]
            for shard in range(len(index.counts)):
                if index.counts[shard]:
                    key = digest([index.shard_digest(shard), autoencoder.content, recipe(config), pixels, *shape])
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
    threads = config.cluster.threads if config.cluster.threads != "auto" else 1
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
        print(f"encode: shard {done} of {len(missing)}, {rate:.0f} images/s", flush=True)
    entries = [{**job, "lost": [], **read_json(entry_path(job["path"]))} for job in jobs]
    listed = ("split", "bucket", "shard", "count", "bytes", "sha256")
    shards = [{k: e[k] for k in listed if k in e} | {"file": Path(e["path"]).name} for e in entries]
    space = latents.merge(e["sums"] for e in entries if e["split"] == "train")
    if not bool(np.isfinite(space.mean.numpy()).all() and (space.std.numpy() > 0).all()):
        raise UserError(
            f"{autoencoder.path}: the autoencoder gives latents that are not finite or constant; train it again"
        )
    lost = {key: why for entry in entries for key, why in entry["lost"]}
    if lost:
        atomic_write(writer.work / "lost.txt", "".join(f"{key}\n" for key in lost))
        print(f"encode: other images stand for {len(lost)} ({next(iter(lost.values()))}): {writer.work / 'lost.txt'}")
    write_json(writer.path / "shards.json", {"pool": "latents", "shards": shards})
    space.save(writer.path / "latents.json")
    channels, size = entries[0]["shape"][0] // 2, entries[0]["shape"][1]
    buckets: dict[str, Any] = {}
    if config.data.buckets is not None:
        factor = config.data.shapes[entries[0]["bucket"]][0] // size
        size = config.data.size // factor
        buckets = {"buckets": [_bucket(entries, b, shape, factor) for b, shape in enumerate(config.data.shapes)]}
    return {
        "shape": [channels, size, size],
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


def _bucket(entries: list[dict[str, Any]], bucket: int, shape: Shape, factor: int) -> dict[str, Any]:
    """Shape [h, w] of a bucket's latents, and how many it has of each split."""
    own = [entry for entry in entries if entry["bucket"] == bucket]
    counts = {split: sum(entry["count"] for entry in own if entry["split"] == split) for split in SPLITS}
    return {"shape": [pixels // factor for pixels in shape], **counts}


def headline(summary: dict[str, Any]) -> str:
    shape = "x".join(map(str, summary["shape"]))
    if "buckets" in summary:
        filled = sum(bool(row["train"] or row["val"]) for row in summary["buckets"])
        shape = f"of {summary['shape'][0]} channels in {filled} buckets"
    count = sum(summary["images"].values())
    return f"{count:,} latents {shape}, {summary['encoded']} of {summary['shards']} shards encoded"


def entry_path(shard: str | Path) -> Path:
    """The record beside a latent shard, written after it: its presence says that the shard is whole."""
    return Path(shard).with_suffix(".json")


def is_whole(shard: Path) -> bool:
    """Whether a latent shard and its record are there, and fit."""
    entry = entry_path(shard)
    return entry.exists() and shard.exists() and shard.stat().st_size == read_json(entry)["bytes"]


def damaged(artifact: Artifact) -> list[str]:
    """The shards of the pool that are not what the artifact says, by hash; for `ldm verify`."""
    listing = read_json(artifact.path / "shards.json")
    pool = artifact.path.parent.parent.parent / listing["pool"]
    files = {pool / shard["file"]: shard["sha256"] for shard in listing["shards"]}
    return [path.name for path, digest in files.items() if not path.exists() or sha256_file(path) != digest]


def open_latents(artifact: Artifact, split: str) -> LatentIndex | LatentBuckets:
    """The latents of a split, in buckets where the images are."""
    from pipeline.data.index import OPEN
    from pipeline.data.latent_shards import LatentBuckets, LatentIndex

    buckets = artifact.summary.get("buckets")
    if buckets is None:
        return LatentIndex.open(shard_paths(artifact, split))
    limit = max(8, OPEN // len(buckets))
    return LatentBuckets([LatentIndex.open(shard_paths(artifact, split, b), limit) for b in range(len(buckets))])


def shard_paths(artifact: Artifact, split: str, bucket: int | None = None) -> list[Path]:
    """The latent shards of a split (and bucket), in order. Raises UserError if the pool lost one."""
    listing = read_json(artifact.path / "shards.json")
    pool = artifact.path.parent.parent.parent / listing["pool"]
    paths = []
    for shard in listing["shards"]:
        if shard["split"] == split and bucket in (None, shard.get("bucket")):
            path = pool / shard["file"]
            if not path.exists() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"{path}: missing or of another size; run again with --rebuild encode")
            paths.append(path)
    return paths


# ---- on a worker -----------------------------------------------------------------------------------------------------


def load_encoder(
    data: str, autoencoder: str, latents: dict[str, Any], images: dict[str, Any], threads: int
) -> dict[str, Any]:
    """What an actor keeps: the autoencoder in evaluation mode, in fp32 with TF32 off, and the open indices."""
    import torch

    from pipeline.data.index import Index
    from pipeline.schema.data import Data
    from pipeline.stages.autoencoder import load_model

    settings = Data.model_validate(images)
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "model": load_model(Path(autoencoder)).to(device),
        "device": device,
        "index": {split: Index.open(data, split, settings.cache).parts for split in SPLITS},
        "views": latents["views"],
        "batch": latents["batch_size"],
        "data": settings,
    }


def encode_shard(state: dict[str, Any], job: dict[str, Any]) -> int:
    """Encode one image shard (or what it has of a bucket) into one latent shard; returns the number of images."""
    from pipeline import latents
    from pipeline.data import latent_shards

    index, path = state["index"][job["split"]][job.get("bucket", 0)], Path(job["path"])
    rows = index.samples_of(job["shard"])
    encoded: list[np.ndarray[Any, Any]] = []
    samples: list[int] = []
    lost: list[list[str]] = []  # [key, why]
    for batch, read, why in _moments(state, index, rows):
        lost += [[index.key(rows[len(samples) + n]), text] for n, text in enumerate(why) if text]
        encoded.append(batch)
        samples += read
    moments = np.concatenate(encoded)  # [n, v, 2C, h, w] float16
    labels = np.array([index.label(i) for i in samples], np.int64)
    latent_shards.write(path, moments, labels, [index.key(i) for i in samples])
    write_json(
        entry_path(path),
        {
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
            "shape": list(moments.shape[2:]),
            "sums": latents.sums(moments),  # of the rounded moments: of what is read later
            "lost": lost,
        },
    )
    return int(job["count"])


def _moments(
    state: dict[str, Any], index: Any, rows: range
) -> Iterator[tuple[np.ndarray[Any, Any], tuple[int, ...], tuple[str, ...]]]:
    """Moments [n, v, 2C, h, w] of some rows, the samples that they are of, and why these are others (`read_views`)."""
    import torch

    from pipeline.data.index import read_views

    data = state["data"]
    for first in range(0, len(rows), state["batch"]):
        part = rows[first : first + state["batch"]]
        read, samples, why = zip(*(read_views(index, i, data, state["views"]) for i in part), strict=True)
        images = np.stack(read, axis=1)  # [v, n, c, H, W] uint8
        with torch.no_grad():
            x = torch.from_numpy(images).to(state["device"])
            views = [state["model"].encode(view.float() / 127.5 - 1) for view in x]
        stacked = torch.stack(views, 1).half().cpu().numpy()  # v x [n, 2C, h, w] -> [n, v, 2C, h, w]
        if not np.isfinite(stacked).all():
            raise UserError(f"shard with {index.key(part[0])}: the autoencoder's moments leave float16; train it again")
        yield stacked, samples, why
