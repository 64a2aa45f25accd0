"""Peak bytes of tensors in a training step, beside what the dry run forecasts: by ZeRO stage, ranks, checkpointing of
activations and accumulation.

    python tests/benchmarks/memory.py [fp32|bf16]

The engine with a DiT of 7.4 million parameters, batch 64, under torch's profiler from before the network is made: the
sum of all its allocations and releases, at the highest in three steps, on rank 0. Python's garbage collector comes by
before each forward pass and at no other time: left to itself it finds what DeepSpeed's cycles hold sooner or later, and
one and the same config takes 274 to 336 MB. Between ranks gloo's threads let go of what they have reduced sooner or
later: the median of three trainings, the lowest and the highest beside. Seven minutes of two cores.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import tempfile
from pathlib import Path
from typing import Any

import steps
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.profiler import ProfilerActivity, profile, record_function

from models import registry
from pipeline import config as configs
from pipeline.planning import memory
from pipeline.training.engine import Engine
from pipeline.training.ranks import Ranks, open_ranks

BACKBONE, BATCH, STEPS = {"kind": "dit", "width": 256, "depth": 6, "heads": 4, "patch": 2}, 64, 3
TRAININGS = 3
CONFIG = Path(__file__).parents[2] / "jobs/configs/cifar10_cpu.yaml"
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "activation checkpointing": {"activation_checkpointing": True},
    "8 a pass": {"micro_batch": 8},
}


def config_of(zero: int, precision: str, how: dict[str, Any]) -> Any:
    """The config whose diffusion stage has this network and this way to train it."""
    values = configs.load(CONFIG).model_dump(by_alias=True)
    values["data"]["size"], values["diffusion"]["backbone"] = 64, BACKBONE  # latents of 4 x 16 x 16
    changed = {"batch_size": BATCH, "zero_stage": zero, "precision": precision, "optimizer": "adamw", **how}
    values["diffusion"]["training"] |= changed
    return configs.Config.model_validate(values)


def collected(loss: steps.LossFn) -> steps.LossFn:
    """This loss, with nothing left of the passes before it but what is in use."""

    def of_pass(module: nn.Module, batch: steps.Batch) -> dict[str, Tensor]:
        gc.collect()
        return loss(module, batch)

    return of_pass


def measured(config: Any, ranks: Ranks) -> int:
    """Bytes at the highest on this rank."""
    gc.collect()
    training = config.diffusion.training
    batch = steps.random_batch(BATCH // ranks.world, 4, 16)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        network = steps.network(BACKBONE, 4, 16)
        if training.activation_checkpointing:
            registry.checkpoint_activations(network.backbone, "dit")
        engine = Engine(network, collected(steps.loss_function(4)), training, ranks)
        with record_function("in steps"):
            for i in range(STEPS):
                engine.step(batch, i * BATCH)
    events = sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    begin = next(i for i, event in enumerate(events) if event.name() == "in steps")
    bytes_now = itertools.accumulate(event.nbytes() if event.name() == "[memory]" else 0 for event in events)
    return max(list(bytes_now)[begin:])


def rank(number: int, world: int, store: str, precision: str) -> None:
    torch.set_num_threads(1)
    gc.disable()
    if world > 1:
        shared = dist.FileStore(store, world)  # type: ignore[attr-defined]  # exported, says its documentation
        dist.init_process_group("gloo", store=shared, rank=number, world_size=world)
    ranks = open_ranks()
    rows = [(zero, way, config_of(zero, precision, how)) for zero in range(4) for way, how in WAYS.items()]
    # before an engine of ZeRO 3 is made, which puts a linear layer of its own into torch, as no dry run does
    forecasts = [memory.of_rank(config, "diffusion", world, "cpu")[1] for _, _, config in rows]
    for (zero, way, config), forecast in zip(rows, forecasts, strict=True):
        low, found, high = sorted(measured(config, ranks) / 1e6 for _ in range(TRAININGS))
        if ranks.first:
            print(f"| {zero} | {world} | {way} | {found:.0f} | {low:.0f} to {high:.0f} | {forecast / 1e6:.0f} "
                  f"| {forecast / 1e6 / found:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("precision", nargs="?", default="fp32", choices=["fp32", "bf16"])
    given = parser.parse_args()
    print("| ZeRO | ranks | | MB | of three | forecast | ratio |\n| ---: | ---: | --- | ---: | ---: | ---: | ---: |",
          flush=True)  # fmt: skip
    for size in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            spawn(rank, (size, f"{folder}/store", given.precision), nprocs=size)
