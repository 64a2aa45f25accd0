"""An adapter of the default rank beside a trained DiT-XS/2: parameters, checkpoint, time of a step over those of the
whole network; and the answers of what is trained (peft's layers) against those of the sum that is sampled from.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from steps import loss_function, network, random_batch
from timing import Figure, interleave, ratio
from torch import nn

from models.lora import merged
from pipeline.schema.training import Lora, Training
from pipeline.training.checkpoint import Saver
from pipeline.training.engine import Engine
from pipeline.training.lora import adapt
from pipeline.training.ranks import open_ranks

BATCH, CHANNELS, SIZE = 4, 4, 32


def measure(rounds: int) -> list[Figure]:
    base, ranks, batch = (
        network({"preset": "dit-xs/2"}, CHANNELS, SIZE),
        open_ranks("cpu"),
        random_batch(BATCH, CHANNELS, SIZE),
    )
    for parameter in base.parameters():  # as if trained: a DiT begins with zeros
        nn.init.normal_(parameter, std=0.05)
    adapted: Any = copy.deepcopy(base)
    whole = Training(batch_size=BATCH, steps=100, zero_stage=0, learning_rate=1e-3)
    lora = Lora()
    adapt(adapted, lora, set())
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    few = whole.model_copy(update={"lora": lora})
    engines = {
        "whole": Engine(base, loss_function(CHANNELS), whole, ranks),
        "adapter": Engine(adapted, loss_function(CHANNELS), few, ranks),
    }
    position = dict.fromkeys(engines, 0)

    def step(name: str) -> float:
        engines[name].step(batch, position[name])
        position[name] += BATCH
        return 1.0

    seconds = interleave({name: functools.partial(step, name) for name in engines}, rounds)
    counts = {
        name: sum(p.numel() for p in e.partition.module.parameters() if p.requires_grad) for name, e in engines.items()
    }
    sizes = {name: _saved(engine) for name, engine in engines.items()}
    differ, moved = _compare(engines["adapter"], weights, lora.scale, batch)
    return [
        Figure("parameters trained, of an adapter", 100 * counts["adapter"] / counts["whole"], "%", "<= 3"),
        Figure("bytes of a checkpoint, of an adapter", sizes["adapter"] / 2**20, "MiB"),
        Figure("bytes of a checkpoint, of the whole network", sizes["whole"] / 2**20, "MiB"),
        Figure("the sum's answers, from those of peft's layers (largest)", 1e6 * differ, "1e-6", "<= 1"),
        Figure("the adapter's answers, from those of its base (largest)", moved),
        ratio("a step, an adapter over the whole network", seconds["adapter"], seconds["whole"]),
    ]


def _saved(engine: Engine) -> int:
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Path(folder), 1, 1, engine)
        saver.save(0, {})
        saver.wait()
        saver.close()
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


@torch.no_grad()
def _compare(engine: Engine, base: dict[str, torch.Tensor], scale: float, batch: dict[str, Any]) -> tuple[float, float]:
    """Largest difference of outputs: merged from unmerged, unmerged from the base."""
    whole = network({"preset": "dit-xs/2"}, CHANNELS, SIZE).eval()
    x, t, told = batch["noise"], batch["u"].float(), {"class": batch["label"]}
    whole.load_state_dict(base)
    before = whole(x, t, told)
    whole.load_state_dict(merged(base, engine.export("live"), scale, set(base)))
    with engine.weights("live") as module:
        unmerged = module(x, t, told)
    size = float(unmerged.abs().max())
    return float((whole(x, t, told) - unmerged).abs().max()) / size, float((unmerged - before).abs().max()) / size
