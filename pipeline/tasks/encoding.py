"""Encoding on a worker: the images of a shard through the autoencoder, into a latent shard with its sums."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.latent_pool import entry_path
from pipeline.data.split import SPLITS
from pipeline.errors import UserError
from pipeline.files import sha256_file, write_json


def load_encoder(
    data: str, autoencoder: str, latents: dict[str, Any], images: dict[str, Any], threads: int
) -> dict[str, Any]:
    """What an actor keeps: the autoencoder in evaluation mode, in fp32 with TF32 off, and the open indices."""
    import torch

    from pipeline.data import tokens
    from pipeline.data.index import Index
    from pipeline.networks import load_model
    from pipeline.schema.data import Data

    settings = Data.model_validate(images)
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(Path(autoencoder)).to(device)
    return {
        "model": model,
        "tokenizer": tokens.of_model(model, Path(autoencoder)),
        "device": device,
        "index": {split: Index.open(data, split, settings.cache).parts for split in SPLITS},
        "views": latents["views"],
        "batch": latents["batch_size"],
        "data": settings,
    }


def encode_shard(state: dict[str, Any], job: dict[str, Any]) -> int:
    """Encode one image shard (or what it has of a bucket) into one latent shard; returns the number of images."""
    from pipeline.data import latent_shards, latents

    index, path = state["index"][job["split"]][job.get("bucket", 0)], Path(job["path"])
    rows = index.samples_of(job["shard"])
    encoded: list[np.ndarray[Any, Any]] = []
    samples: list[int] = []
    lost: list[list[str]] = []  # [key, why]
    for batch, read, why in _moments(state, index, rows):
        lost += [[index.key(rows[len(samples) + n]), text] for n, text in enumerate(why) if text]
        encoded.append(batch)
        samples += read
    moments = np.concatenate(encoded)  # [n, v, 2C, *sides] float16
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
    """Moments [n, v, 2C, *sides] of some rows, the samples they are of, and why these are others (`read_views`)."""
    import torch

    from pipeline.data.index import read_views
    from pipeline.data.value_map import floats

    data = state["data"]
    if state["tokenizer"] is not None:
        yield from _of_text(state, index, rows)
        return
    for first in range(0, len(rows), state["batch"]):
        part = rows[first : first + state["batch"]]
        read, samples, why = zip(*(read_views(index, i, data, state["views"]) for i in part), strict=True)
        images = np.stack(read, axis=1)  # [v, n, c, H, W] uint8, or values
        with torch.no_grad():
            x = torch.from_numpy(images) if index.values is None else index.values.tensor(images)
            views = [state["model"].encode(floats(view)) for view in x.to(state["device"])]
        yield _rounded(torch.stack(views, 1), index, part), samples, why  # v x [n, 2C, *sides] -> [n, v, 2C, *sides]


def _of_text(state: dict[str, Any], index: Any, rows: range) -> Iterator[Any]:
    """As `_moments`, of passages."""
    import torch

    from pipeline.data import tokens
    from pipeline.data.passages import read_passage

    for first in range(0, len(rows), state["batch"]):
        part = rows[first : first + state["batch"]]
        found = tokens.rows(state["tokenizer"], [read_passage(index, i) for i in part], state["model"].length)
        with torch.no_grad():
            moments = state["model"].encode(torch.from_numpy(found.tokens).to(state["device"]))
        yield _rounded(moments[:, None], index, part), tuple(part), ("",) * len(part)


def _rounded(moments: Any, index: Any, rows: range) -> np.ndarray[Any, Any]:
    """Moments as they are stored, float16. UserError where they do not fit."""
    stored: np.ndarray[Any, Any] = moments.half().cpu().numpy()
    if not np.isfinite(stored).all():
        raise UserError(f"shard with {index.key(rows[0])}: the autoencoder's moments leave float16; train it again")
    return stored
