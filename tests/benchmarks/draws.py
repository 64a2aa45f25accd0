"""A small DiT trained through the loader, against the same steps with the same batches in memory.

Through the loader: order, latents off the disk, Philox draws for posterior, time, noise and dropped classes, all in the
process that trains (data.loader_workers: 0). In memory: the very same batches, drawn before. The step is the bare loop,
the leanest there is; the engine's share of a step would make the loader's look smaller.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from steps import CLASSES, Batch, bare_step, loss_function, network
from timing import Figure, interleave, ratio

from pipeline.data import latent_shards
from pipeline.data.latent_shards import LatentIndex
from pipeline.data.loader import latent_batches
from pipeline.data.order import Order, lanes
from pipeline.schema.data import Data

SAMPLES, BATCH, STEPS = 8192, 128, 10


def measure(rounds: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder), rounds)


def _measure(folder: Path, rounds: int) -> list[Figure]:
    generator = np.random.default_rng(0)
    for shard in range(SAMPLES // 2048):
        moments = generator.standard_normal((2048, 2, 8, 8, 8), np.float32).astype(np.float16)  # two views
        labels = generator.integers(0, CLASSES, 2048)
        latent_shards.write(folder / f"{shard}.tar", moments, labels, [str(i) for i in range(2048)])
    index = LatentIndex.open(sorted(folder.glob("*.tar")))
    order = Order(index.counts, BATCH, lanes(BATCH), seed=0)
    data = Data(source={"kind": "digits"})

    def stream() -> Iterator[Batch]:
        return latent_batches(index, order, data, 0, 0, 1, 0, 0.1, CLASSES)

    through = stream()
    kept = [batch for batch, _ in zip(stream(), range(STEPS), strict=False)]
    step = bare_step(network({"preset": "dit-xxs/2"}, 4, 8), loss_function(4))

    def steps(batches: Callable[[], Iterator[Batch]]) -> Callable[[], float]:
        def run() -> float:
            for _, batch in zip(range(STEPS), batches(), strict=False):
                step(batch)
            return STEPS

        return run

    def load() -> float:
        for _ in zip(range(STEPS), through, strict=False):
            pass
        return STEPS

    seconds = interleave({"loader": steps(lambda: through), "memory": steps(lambda: iter(kept)), "alone": load}, rounds)
    name = "dit-xxs/2 on 4x8x8, batch 128"
    return [
        ratio(f"{name}: step through the loader over step in memory", seconds["loader"], seconds["memory"], "<= 1.05"),
        Figure(f"{name}: step in memory", 1e3 * seconds["memory"].median(), "ms CPU"),
        Figure(f"{name}: the loader alone", 1e6 * seconds["alone"].median() / BATCH, "us CPU a sample"),
    ]
