"""Latents read in training order, against webdataset's default writer and reader; and bytes on disk.

Both sides give float16 moments and int64 labels, batch by batch, in shuffled order, in this process. Ours is what
training does: `Order`, `TrainingRequests`, `LatentIndex.read`. webdataset shuffles a buffer of 1,000 as its samples
stream by. Random draws are made by neither side here; `draws.py` has what they cost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import webdataset
from timing import Figure, interleave, ratio

from pipeline.data import latent_shards
from pipeline.data.latent_shards import LatentIndex
from pipeline.data.loader import TrainingRequests
from pipeline.data.order import Order, lanes

SAMPLES, SHARD, BATCH = 8192, 2048, 128


def measure(rounds: int) -> list[Figure]:
    figures = []
    for shape, least in (((8, 32, 32), 50), ((8, 8, 8), 100)):
        with tempfile.TemporaryDirectory() as folder:
            figures += _measure(Path(folder), shape, least, rounds)
    return figures


def _measure(folder: Path, shape: tuple[int, int, int], least: int, rounds: int) -> list[Figure]:
    generator = np.random.default_rng(0)
    moments = generator.standard_normal((SAMPLES, *shape), np.float32).astype(np.float16)
    labels, keys = generator.integers(0, 10, SAMPLES), [f"class{i % 10}/{i:08d}" for i in range(SAMPLES)]
    _write_webdataset(folder, moments, labels)
    for start in range(0, SAMPLES, SHARD):
        part = slice(start, start + SHARD)
        latent_shards.write(folder / f"latents-{start:06d}.tar", moments[part, None], labels[part], keys[part])
    ours, theirs = sorted(folder.glob("latents-*.tar")), sorted(folder.glob("webdataset-*.tar"))
    variants = {"ours": _ours(ours), "webdataset": lambda: _webdataset([str(path) for path in theirs])}
    seconds = interleave(variants, rounds)
    name = "x".join(map(str, shape))
    content = moments.nbytes + labels.nbytes + sum(len(key) for key in keys)
    rate = {variant: 1 / value.median() for variant, value in seconds.items()}
    samples, size = f"{name}: samples a CPU second", f"{name}: bytes on disk over moments, labels, keys"
    return [
        ratio(f"{samples} over webdataset's", seconds["webdataset"], seconds["ours"], f">= {least}"),
        Figure(samples, rate["ours"], "1/s"),
        Figure(f"{samples}, webdataset", rate["webdataset"], "1/s"),
        Figure(size, _bytes(ours) / content, "times", "<= 1.01"),
        Figure(f"{size}, webdataset", _bytes(theirs) / content, "times"),
    ]


def _ours(paths: list[Path]) -> Callable[[], float]:
    """Epochs without end; a call reads ten, so that it lasts long enough to be timed."""
    index = LatentIndex.open(paths)
    requests = iter(TrainingRequests(Order(index.counts, BATCH, lanes(BATCH), seed=0), 0, 1, 0))
    epochs = 10

    def read() -> float:
        count = 0
        for request in islice(requests, epochs * SAMPLES // BATCH):
            moments, labels = index.read(request.indices)
            assert len(moments) == len(labels) == BATCH
            count += BATCH
        return count

    return read


def _webdataset(paths: list[str]) -> float:
    """One epoch."""
    dataset = webdataset.WebDataset(paths, shardshuffle=False).shuffle(1000).decode().to_tuple("npy", "cls")
    count = 0
    for moments, labels in dataset.batched(BATCH):
        assert moments.dtype == np.float16
        count += len(labels)
    return count


def _write_webdataset(folder: Path, moments: np.ndarray, labels: np.ndarray) -> None:
    with webdataset.ShardWriter(f"file:{folder}/webdataset-%06d.tar", verbose=0) as writer:
        for i, (values, label) in enumerate(zip(moments, labels, strict=True)):
            writer.write({"__key__": f"{i:08d}", "npy": values, "cls": int(label)})


def _bytes(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)
