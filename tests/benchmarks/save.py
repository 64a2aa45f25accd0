"""How long training stands still for a checkpoint, over the copy alone.

The copy alone: all that is saved (weights, moments, average of a DiT-S/2: 16 bytes a parameter) into host buffers that
are there already. The still-stand: `Saver.save`, from the call until the next step may begin, while its thread
starts to hash and to write. Wall time: there are two threads.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from steps import loss_function, network, random_batch
from timing import Figure, Stopwatch, ratio

from pipeline.schema.training import Training
from pipeline.training.checkpoint import Saver
from pipeline.training.engine import Engine
from pipeline.training.ranks import open_ranks


def measure(rounds: int) -> list[Figure]:
    training = Training(batch_size=1, steps=100, zero_stage=0)
    engine = Engine(network({"preset": "dit-s/2"}, 4, 32), loss_function(4), training, open_ranks("cpu"))
    engine.step(random_batch(1, 4, 32), 0)
    slots = {key: flats for key, flats in engine.partition.slots(engine.averages).items() if flats}
    host = {key: torch.empty(sum(flat.numel() for flat in flats)) for key, flats in slots.items()}
    copy, still, whole = Stopwatch(), Stopwatch(), Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Path(folder), 1, 1, engine)

        def copy_alone() -> None:
            copy.start()
            for key, flats in slots.items():
                for target, flat in zip(host[key].split([flat.numel() for flat in flats]), flats, strict=True):
                    target.copy_(flat)
            copy.stop()

        def save(position: int) -> None:
            whole.start()
            still.start()
            saver.save(position, {})
            still.stop()
            saver.wait()  # so that what follows begins on a quiet machine
            whole.stop()

        for number in range(rounds + 1):
            if number % 2:
                copy_alone()
            save(number)
            if number % 2 == 0:
                copy_alone()
        saver.close()
    seconds = {"copy": copy.seconds(1), "save": still.seconds(1), "whole": whole.seconds(1)}
    size = sum(tensor.numel() * tensor.element_size() for tensor in host.values())
    return [
        ratio("still-stand of a save over the copy alone", seconds["save"], seconds["copy"], "<= 1.2", clock="wall"),
        Figure("still-stand of a save", 1e3 * seconds["save"].median("wall"), "ms"),
        Figure("a save until it is on disk, hashed and synced", seconds["whole"].median("wall"), "s"),
        Figure("bytes of a checkpoint", size / 2**20, "MiB"),
    ]
