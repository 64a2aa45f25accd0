"""Stage 2 on cached latents against encoding in each step, with the models of `jobs/configs/cifar10_cpu.yaml`.

Cached: `latent_batches`, then the step. Encoding in each step: `image_batches` (the same images read from their shards
and decoded), the autoencoder's encoder, then the same step. The cache costs what `encode_shard` takes: every image once
for each view, and latents rounded, summed, written and hashed. It has paid after the epochs in which the steps have
saved as much.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from steps import CLASSES, bare_step, loss_function, network
from timing import Figure, interleave, ratio, spread

from models import registry
from pipeline.cluster.inline import Inline
from pipeline.data.index import Index
from pipeline.data.latent_shards import LatentIndex
from pipeline.data.loader import image_batches, latent_batches
from pipeline.data.order import Order, lanes
from pipeline.data.value_map import floats
from pipeline.schema.data import Data
from pipeline.stages import ingest
from pipeline.tasks.encoding import encode_shard

AUTOENCODER = {
    "kind": "kl", "width": 16, "multipliers": [1, 4, 4], "blocks": 1, "latent_channels": 4, "groups": 8,
    "attention": False,
}  # fmt: skip
BACKBONE = {"width": 128, "depth": 6, "heads": 4, "patch": 2}
IMAGES, SHARD, BATCH, STEPS = 1024, 256, 128, 2


def measure(rounds: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder), rounds)


def _measure(folder: Path, rounds: int) -> list[Figure]:
    data = _ingest(folder)
    images = Index.open(folder / "out", "train")
    torch.manual_seed(0)
    encoder: Any = registry.build("autoencoders", AUTOENCODER, channels=3).eval()
    paths = {shard: folder / f"{shard}.tar" for shard, count in enumerate(images.counts) if count}
    encoding = _encodings(encoder, images, data, paths)
    for _ in paths:
        next(encoding)
    latents = LatentIndex.open(list(paths.values()))
    step = bare_step(network(BACKBONE, 4, 8), loss_function(4))
    order = Order(latents.counts, BATCH, lanes(BATCH), seed=0)
    cached = latent_batches(latents, order, data, 0, 0, 1, 0, 0.1, CLASSES)
    pictures = image_batches(images, order, data, 0, 0, 1, 0, (4, 8, 8))

    def on_latents() -> float:
        for _, batch in zip(range(STEPS), cached, strict=False):
            step(batch)
        return STEPS * BATCH

    def on_images() -> float:
        for _, batch, other in zip(range(STEPS), pictures, cached, strict=False):
            with torch.no_grad():
                moments = encoder.encode(floats(batch["images"]))
            step({**other, "moments": moments})  # with the draws of the cached batch, which cost little
        return STEPS * BATCH

    seconds = interleave({"cached": on_latents, "encoding": on_images, "cache": lambda: next(encoding)}, rounds)
    triples = zip(seconds["cache"].cpu, seconds["encoding"].cpu, seconds["cached"].cpu, strict=True)
    epochs = [views_once / (encoded - cached) for views_once, encoded, cached in triples]
    return [
        ratio("stage 2, encoding in each step over cached latents", seconds["encoding"], seconds["cached"]),
        spread("epochs after which the cache has paid, one view", epochs, "epochs"),
        spread("epochs after which the cache has paid, two views", [2 * e for e in epochs], "epochs"),
        Figure("a step on cached latents", 1e3 * seconds["cached"].median(), "ms CPU a sample"),
        Figure("a step that encodes", 1e3 * seconds["encoding"].median(), "ms CPU a sample"),
        Figure("making the cache, one view", 1e3 * seconds["cache"].median(), "ms CPU a sample"),
    ]


def _ingest(folder: Path) -> Data:
    """Smooth random images, ingested to shards of PNG files as a user's are."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, 32, mode="bilinear")
    pixels = (smooth * 255).byte().permute(0, 2, 3, 1).numpy()
    np.savez(folder / "images.npz", images=pixels, labels=np.arange(IMAGES) % CLASSES)
    source = {"kind": "arrays", "path": str(folder / "images.npz")}
    data = Data(source=source, size=32, channels=3, shard_size=SHARD, split={"val_fraction": 0.05})
    config: Any = SimpleNamespace(run=SimpleNamespace(root=str(folder)), data=data)
    writer: Any = SimpleNamespace(path=folder / "out", work=folder / "out" / "work")
    ingest.run(config, {}, writer, Inline(), None)
    return data


def _encodings(encoder: Any, images: Index, data: Data, paths: dict[int, Path]) -> Iterator[float]:
    """Encodes one shard after the other, without end; gives the number of images."""
    state = {
        "model": encoder, "device": "cpu", "index": {"train": [images]}, "views": ["as_is"], "batch": BATCH,
        "data": data, "tokenizer": None,
    }  # fmt: skip
    while True:
        for shard, path in paths.items():
            count = int(images.counts[shard])
            yield encode_shard(state, {"split": "train", "shard": shard, "path": str(path), "count": count})
