"""The engine and the loop over a bare PyTorch loop, on a DiT-S/2 of 33M parameters; and both over the machine's GEMMs.

Engine: `loop.train` with ZeRO 0 in one process, so batches, guard, watchdog, clip, AdamW, average, and logging to a
spool every second step, which is five times as often as by default; checkpoints are apart. Bare loop: the same network
and loss in a loop written by hand with clip, fused AdamW and average. Lean: that loop with a DiT and a loss that have
no options at all (`lean_dit.py`). The GEMM rate is that of a large square product, measured in the same rounds; beside
it stands that of the products of one block. Model FLOPs are those of `models.backbones.dit.flops`, three times the
forward pass. At this small batch clip, AdamW and average are still seen: they cost the same at any batch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from lean_dit import LeanDiT, lean_loss
from steps import (
    CLASSES,
    CLIP,
    HALF_LIFE,
    LEARNING_RATE,
    Batch,
    bare_step,
    loss_function,
    network,
    random_batch,
)
from timing import Figure, Stopwatch, ratio, spread

from models import registry
from models.backbones import dit
from pipeline.files import write_json
from pipeline.schema.training import Training
from pipeline.tracking.tracker import Spool
from pipeline.training.engine import Engine
from pipeline.training.loop import Task, train
from pipeline.training.ranks import open_ranks

BACKBONE, CHANNELS, SIZE, BATCH, STEPS = {"preset": "dit-s/2"}, 4, 32, 4, 2
SQUARE = [(2048, 2048, 2048)]  # rows, inner, columns
BLOCK = [(1024, 384, 1152), (1024, 384, 384), (1024, 384, 1536), (1024, 1536, 384)]  # qkv, out, up, down


def measure(rounds: int) -> list[Figure]:
    config = registry.make_config("backbones", {"kind": "dit", **BACKBONE})
    batch = random_batch(BATCH, CHANNELS, SIZE)
    ours = network(BACKBONE, CHANNELS, SIZE)
    lean = LeanDiT(config.width, config.depth, config.heads, config.patch, CHANNELS, SIZE, CLASSES)
    lean.load_state_dict({**lean.state_dict(), **_zeros(lean)})
    steps = {
        "bare": bare_step(network(BACKBONE, CHANNELS, SIZE), loss_function(CHANNELS)),
        "lean": bare_step(lean, lean_loss),
    }
    watches = {name: Stopwatch() for name in ("engine", *steps)}
    gemm: list[float] = []
    block_gemm: list[float] = []

    def others() -> None:
        """One round of all but the engine."""
        for name, step in steps.items():
            watches[name].start()
            for _ in range(STEPS):
                step(batch)
            watches[name].stop(per=STEPS)
        gemm.append(gemm_rate(SQUARE))
        block_gemm.append(gemm_rate(BLOCK))

    with tempfile.TemporaryDirectory() as folder:
        _train(ours, batch, watches["engine"], others, rounds + 1, Path(folder))
    seconds = {name: watch.seconds(warm_up=1) for name, watch in watches.items()}
    work = 3 * dit.flops(config, CHANNELS, SIZE) * BATCH
    name = f"dit-s/2 on 4x32x32, batch {BATCH}"
    of_gemm = {
        variant: [work / s / rate for s, rate in zip(value.cpu, gemm[1:], strict=True)]
        for variant, value in seconds.items()
    }
    return [
        ratio(f"{name}: engine over bare loop", seconds["engine"], seconds["bare"], "<= 1.10"),
        ratio(f"{name}: engine over bare loop, wall time", seconds["engine"], seconds["bare"], clock="wall"),
        ratio(f"{name}: bare loop over lean DiT in the same loop", seconds["bare"], seconds["lean"]),
        Figure(f"{name}: step of the engine", seconds["engine"].median(), "s CPU"),
        spread("GEMM rate of one thread, fp32, 2048 squared", [rate / 1e9 for rate in gemm[1:]], "GFLOP/s"),
        spread("GEMM rate of the products of a block, forward", [rate / 1e9 for rate in block_gemm[1:]], "GFLOP/s"),
        spread("model FLOPs a second over GEMM rate: engine", of_gemm["engine"]),
        spread("model FLOPs a second over GEMM rate: bare loop", of_gemm["bare"]),
        spread("model FLOPs a second over GEMM rate: lean DiT", of_gemm["lean"]),
    ]


def _zeros(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Modulations and output at zero, as in a new DiT: no variant computes with other numbers than the others."""
    parts = model.state_dict().items()
    return {k: torch.zeros_like(v) for k, v in parts if "modulation" in k or k.startswith("out.")}


def _train(
    model: torch.nn.Module, batch: Batch, watch: Stopwatch, others: Callable[[], None], rounds: int, folder: Path
) -> None:
    """`loop.train` from end to end. Its source of batches holds it after every `STEPS` steps, for the others' turn."""
    training = Training(
        batch_size=BATCH, steps=rounds * STEPS, learning_rate=LEARNING_RATE, clip=CLIP, half_lives=(HALF_LIFE,),
        zero_stage=0, log_every=STEPS, save_every=10**9, weight_decay=0.0,
    )  # fmt: skip
    loss, ranks = loss_function(CHANNELS), open_ranks("cpu")

    def batches(position: int) -> Iterator[Batch]:
        _await_first_checkpoint(folder / "checkpoints")
        for number in range(rounds):
            others()
            watch.start()
            for i in range(STEPS):
                yield {**batch, "position": position + (number * STEPS + i) * BATCH}
                if i == STEPS - 1 and number < rounds - 1:
                    watch.stop(per=STEPS)  # the step, its guard and its log are behind us

    def on_step(position: int, stats: object) -> None:
        if position == (rounds * STEPS - 1) * BATCH:  # the last: the loop asks for no more
            watch.stop(per=STEPS)

    def progress(line: object) -> None:
        write_json(folder / "progress.json", {"line": str(line)})

    engine = Engine(model, loss, training, ranks)
    spool = Spool(folder / "spool", "benchmark", 1)
    train(
        engine, Task("diffusion", loss, batches), training, ranks, folder / "checkpoints", spool, lambda: False,
        on_step=on_step, progress=progress,
    )  # fmt: skip


def _await_first_checkpoint(folder: Path) -> None:
    """The loop saves before its first step; that thread's work is no part of a step."""
    late = time.monotonic() + 60
    while not any(folder.glob("*/manifest.json")):
        if time.monotonic() > late:
            raise TimeoutError(f"no checkpoint in {folder} after a minute")
        time.sleep(0.05)


def gemm_rate(products: Sequence[tuple[int, int, int]]) -> float:
    """FLOPs a CPU second of fp32 products, (rows, inner, columns) each, in turn."""
    operands = [(torch.randn(rows, inner), torch.randn(inner, columns)) for rows, inner, columns in products]
    work = sum(2 * rows * inner * columns for rows, inner, columns in products)
    for a, b in operands:
        torch.mm(a, b)
    repeats = max(1, int(6e10 / work))
    start = time.process_time()
    for _ in range(repeats):
        for a, b in operands:
            torch.mm(a, b)
    return work * repeats / (time.process_time() - start)
