"""What follows from a training section alone: learning rate at a position, precision, the split into micro-batches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.schema.training import Training


def learning_rate(training: Training, position: int) -> float:
    """The learning rate of the step that begins at `position` (samples seen): a pure function of it.

    Linear warm-up to the peak; then constant, half a cosine to 0, or (wsd, https://arxiv.org/abs/2405.18392) constant
    with a linear fall to 0 over the last `decay` of the steps.
    """
    step = position // training.batch_size
    rate = float(training.learning_rate)
    if step < training.warmup:
        return rate * (step + 1) / training.warmup
    if training.schedule == "cosine":
        done = (step - training.warmup) / max(1, training.steps - training.warmup)
        return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if training.schedule == "wsd" and training.decay > 0:
        return rate * max(0.0, min(1.0, (training.steps - step) / (training.decay * training.steps)))
    return rate


def stable_steps(training: Training) -> int:
    """The first steps whose learning rate does not depend on `training.steps`: runs that differ in nothing else share
    them, bit for bit."""
    if training.schedule == "constant":
        return training.steps
    if training.schedule == "wsd":
        return max(training.warmup, math.floor(training.steps * (1 - training.decay)))
    return min(training.warmup, training.steps)


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` made plain: bf16 on a GPU that has it, fp16 on one that has not, fp32 on a CPU (unless
    `stages/precision.py` has put another in its place)."""
    if precision == "fp16" and device.type == "cpu":
        raise UserError("training.precision: fp16 needs a GPU; on a CPU use fp32 (or auto)")
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def micro_batches(training: Training, world: int) -> tuple[int, int]:
    """(samples a forward pass, forward passes a step) of each rank."""
    if training.batch_size % world:
        raise UserError(f"training.batch_size: {training.batch_size} is not divisible by {world} ranks; change either")
    share = training.batch_size // world
    most = min(training.micro_batch or share, share)
    micro = next(size for size in range(most, 0, -1) if share % size == 0)
    return micro, share // micro


def largest_micro_batch(share: int, below: int, base: int, peak_of_one: int, total: int) -> int:
    """The largest divisor of a rank's `share` under `below` samples that fits by a linear estimate; 0: none does.

    base: bytes held between steps; peak_of_one: peak bytes with a micro-batch of one; total: bytes of the device.
    """
    one = max(1, peak_of_one - base)
    room = (0.95 * total - base) / one  # 5% for fragments
    return max((m for m in range(1, below) if share % m == 0 and m <= room), default=0)
