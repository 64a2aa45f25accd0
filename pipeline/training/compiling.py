"""What `training.compile: auto` is: whether compiling saves more seconds of a training than it takes.

Decided once, before the first step, and kept with the stage's work: compiled and plain steps differ in their last bits,
and a resumed training is the same training. What is compiled is in `engine.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.files import read_json, write_json
from pipeline.schema.training import Training
from pipeline.training.arithmetic import resolve_precision
from pipeline.training.meter import product_rate
from pipeline.training.ranks import Ranks

FILE = "compile.json"  # in a stage's work folder
TAKES = 114.0  # seconds, of a DiT of 6 blocks with captions in bf16 on one core of an AMD EPYC, torch 2.13
SAVES = 0.14  # of each step of the same


def settled(training: Training, ranks: Ranks, work: Path, flops: int, say: Callable[[str], None]) -> Training:
    """The section with a yes or no in place of `auto`. All ranks call.

    flops: model FLOPs of a training sample, 0: not known, then plain. The seconds of a training are taken as if it
    reached the rate of large products on these devices: they are more, so that a close case is compiled by the next
    larger training.
    """
    if training.compile != "auto":
        return training
    file = work / FILE
    if not ranks.broadcast_object(file.exists()):
        precision = resolve_precision(training.precision, ranks.device)
        seconds = flops * training.steps * training.batch_size / product_rate(ranks, precision)
        if ranks.first:
            able = ranks.device.type == "cuda" or shutil.which(os.environ.get("CXX", "g++")) is not None
            compiled = able and seconds * SAVES > TAKES
            write_json(file, {"compile": compiled, "seconds": round(seconds), "compiler": able})
            why = f"{seconds:.0f} s of large products" if able else "no C++ compiler here"
            say(f"`training.compile`: auto is {str(compiled).lower()}: {why}")
    kept = ranks.broadcast_object(read_json(file) if ranks.first else None)
    return training.model_copy(update={"compile": kept["compile"]})
