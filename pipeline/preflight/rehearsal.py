"""A real step of each trained stage before a run: the config's networks, loss, precision, ZeRO stage and micro-batch.

The ranks are those of training, placed in the same way. A stage whose inputs are not there yet gets synthetic ones of
the right shapes in a folder of their own (`synthetic.py`). What the figures mean is judged in `verdicts.py`.
"""

from __future__ import annotations

import gc
import importlib
import math
import signal
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact
from pipeline.config import Config
from pipeline.files import write_json
from pipeline.preflight.synthetic import make_inputs

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster
    from pipeline.stages.graph import Step
    from pipeline.training.ranks import Ranks

STAGES = ("autoencoder", "diffusion")
SIZES = (4 * 2**10, 2**20, 16 * 2**20, 64 * 2**20)  # bytes of an all-reduce: from latency to DeepSpeed's buckets
REPEATS = 3  # of each all-reduce, after one that is not counted
SLOW_REDUCE = 2.0  # seconds of an all-reduce after which larger ones are left out
STEPS = 3  # timed steps after the first, which warms up
STAGE_SECONDS = 25.0  # after so long a stage takes no further step: both have to fit into two minutes


def rehearse(config: Config, steps: list[Step], cluster: Cluster, folder: Path) -> dict[str, Any]:
    """Steps of both trained stages (without those that are finished) on the cluster's ranks, all-reduces between them.

    folder: on the shared root. Gives what `rank` measured, and `notes` on what was not as it will be. Raises UserError
    for what a run would refuse (out of memory, say), Stopped at once when asked to end, or what Ray Train raised.
    """
    from pipeline.cluster.stopping import Stopped
    from pipeline.files import read_json

    stages = [name for name in STAGES if name not in finished(steps)]
    world = max(ranks_of(config, name, cluster.workers()) for name in stages)
    rehearsed, notes = as_rehearsed(config, world)
    if config.data.source.kind == "text":  # whose tokenizer is kept under the root
        rehearsed = rehearsed.model_copy(update={"run": config.run.model_copy(update={"root": str(folder)})})
    inputs, made = make_inputs(rehearsed, {} if config.data.buckets else finished(steps), folder, stages)
    arguments = {
        "config": rehearsed.model_dump(mode="json", by_alias=True),
        "stages": stages,
        "inputs": {name: str(artifact.path) for name, artifact in inputs.items()},
        "result": str(folder / "rehearsal.json"),
    }
    work = folder / "work"
    work.mkdir()

    def watch() -> None:
        if (work / "stop").exists():  # nothing is to be saved: no rank is waited for
            raise Stopped(again=(work / "stop").read_text() == signal.SIGUSR1.name)

    cluster.train(rank, arguments, work, lambda: world, watch)
    return {**read_json(folder / "rehearsal.json"), "notes": notes + made}


def finished(steps: list[Step]) -> dict[str, Artifact]:
    """The finished artifacts by stage."""
    return {step.stage: step.artifact for step in steps if step.artifact}


def as_rehearsed(config: Config, world: int) -> tuple[Config, list[str]]:
    """The config whose global batch is one micro-batch a rank, and what else was changed to be quick, in words."""
    from pipeline.training.arithmetic import micro_batches

    values, notes = config.model_dump(by_alias=True), []
    for name in STAGES:
        training = getattr(config, name).training
        micro, _ = micro_batches(training, ranks_of(config, name, world))
        changed = {"batch_size": micro * world, "micro_batch": micro, "skip": (), "compile": False}
        values[name]["training"] |= {**changed, "init_from": None, "lora": None, "snapshot_every": None}
        if training.lora:
            notes.append(f"{name}: without `lora`, as if all its weights were trained: an adapter needs less memory")
        if training.compile:
            notes.append(f"{name}: torch.compile was left out, it takes minutes to start")
    values["data"] |= {"lanes": world, "balance": None, "buckets": None}
    if config.data.buckets:
        notes.append("buckets: the images were squares")
    values["diffusion"]["fd"]["every"] = 0
    if student := config.diffusion.distil:  # whose teacher is not loaded
        values["diffusion"]["distil"] = None
        values["evaluate"] |= {"sampler": "dpmpp_2m", "grid": "auto"}
        more = f"step is of {student.steps} times as many samples, and walks as its teacher: longer, with more memory"
        notes.append(f"diffusion: a denoiser was trained in place of the student, whose {more}")
    perceptual = values["autoencoder"]["loss"]["perceptual"]
    if perceptual["kind"] == "classifier" and perceptual["path"] is None:
        perceptual["kind"] = "random"
        notes.append("autoencoder: an untrained network stood for the classifier of the perceptual loss")
    return Config.model_validate(values), notes


def ranks_of(config: Config, name: str, workers: int) -> int:
    """Ranks that a stage's training will have of so many workers."""
    from pipeline.data.order import lanes, largest_world

    return largest_world(config.data.lanes or lanes(getattr(config, name).training.batch_size), workers)


# ---- on a rank -------------------------------------------------------------------------------------------------------


def rank(arguments: dict[str, Any]) -> None:
    """One rank's part. Rank 0 writes `result`: world, device, hosts of the ranks, `collective`, `stages` by name."""
    import socket

    import torch

    from pipeline.cluster.on_rank import device
    from pipeline.training.ranks import open_ranks

    torch.set_num_threads(arguments["threads"])
    config, ranks = Config.model_validate(arguments["config"]), open_ranks(device())
    inputs = {name: Artifact.load(path) for name, path in arguments["inputs"].items()}
    found = {
        "world": ranks.world,
        "device": ranks.device.type,
        "hosts": ranks.gather_objects(socket.gethostname()),
        "collective": all_reduce_times(ranks),
        "stages": {name: stage_step(name, config, inputs, ranks) for name in arguments["stages"]},
    }
    if ranks.first:
        write_json(arguments["result"], found)
    ranks.barrier()


def all_reduce_times(ranks: Ranks, sizes: tuple[int, ...] = SIZES) -> list[dict[str, float]]:
    """Seconds (median) of an all-reduce of so many `bytes` of fp32, and `bandwidth` in bytes/s; empty for one rank.

    Bandwidth is that of the bus, 2 (n - 1) / n x bytes / seconds (as nccl-tests count): what each rank's link carries.
    """
    import torch

    rows: list[dict[str, float]] = []
    if ranks.world == 1:
        return rows
    for size in sizes:
        values = torch.zeros(size // 4, device=ranks.device)
        times = []
        for _ in range(1 + REPEATS):
            ranks.barrier()
            _wait_for_device(ranks)
            begun = time.perf_counter()
            ranks.all_reduce(values)
            _wait_for_device(ranks)
            times.append(time.perf_counter() - begun)
        slowest = torch.tensor(times[1:], device=ranks.device)
        seconds = float(ranks.all_reduce(slowest, "max").median())  # equal on all ranks: they leave together
        moved = 2 * (ranks.world - 1) / ranks.world * size
        rows.append({"bytes": float(size), "seconds": seconds, "bandwidth": moved / max(seconds, 1e-9)})
        if seconds > SLOW_REDUCE:
            break
    return rows


def _wait_for_device(ranks: Ranks) -> None:
    import torch

    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)


def stage_step(name: str, config: Config, inputs: dict[str, Artifact], ranks: Ranks) -> dict[str, float | None]:
    """Steps of one stage with one micro-batch a rank.

    Gives `images` a step over all ranks, seconds of a `step` (a later one, the first where there was no time for
    another), of reading its batch on a rank (`load`), bytes of `memory` of the rank that used the most, `parameters`,
    the `loss` (None: not finite).
    """
    import torch

    training = getattr(config, name).training
    model, task = importlib.import_module(f"pipeline.tasks.{name}").build(config, inputs, ranks)
    engine = task.engine(model, training, ranks)
    start = config.autoencoder.loss.adversarial.start if name == "autoencoder" else 0  # where a discriminator is on
    position, begun = start * training.batch_size, time.perf_counter()
    batches = task.batches(position)
    steps, loads, losses = [], [], []
    for _ in range(1 + STEPS):
        loads.append(-time.perf_counter())
        batch = next(batches)
        loads[-1] += time.perf_counter()
        ranks.barrier()
        steps.append(-time.perf_counter())
        losses.append(engine.step(batch, position).loss)  # its loss comes to the host: the step is over
        _wait_for_device(ranks)
        steps[-1] += time.perf_counter()
        position += training.batch_size
        spent = torch.tensor(time.perf_counter() - begun, device=ranks.device)
        if float(ranks.all_reduce(spent, "max")) > STAGE_SECONDS:
            break
    getattr(batches, "close", lambda: None)()
    mine = [max(median(times[1:] or times), 1e-9) for times in (steps, loads)] + [_peak_memory(ranks)]
    step, load, memory = ranks.all_reduce(torch.tensor(mine, dtype=torch.float64, device=ranks.device), "max").tolist()
    found: dict[str, float | None] = {
        "images": float(training.batch_size),
        "step": step,
        "load": load,
        "memory": memory,
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "loss": losses[-1] if math.isfinite(losses[-1]) else None,
    }
    del engine, model, task, batches
    gc.collect()
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _peak_memory(ranks: Ranks) -> float:
    """Bytes of the GPU, or of the process on a CPU, at the highest."""
    import resource

    import torch

    if ranks.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(ranks.device))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
