"""Averages of weights after training: snapshots of power-function averages, and weights of any length made from them.

    <artifact>/snapshots/length-0.05-000000012800.safetensors   the average of relative length 0.05 over 12,800 samples

Each snapshot is a whole fp32 model by itself. What an average is, and how others follow from a few, is in
`models/ema.py`; averages are kept by `engine.py` on the shards that each rank owns, and saved in checkpoints.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import atomic_path, canonical_json, save_tensors
from pipeline.schema.names import length_name

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.schema.training import Training
    from pipeline.training.engine import Engine

FOLDER = "snapshots"
NAME = re.compile(r"(length-[0-9.e-]+)-(\d{12})\.safetensors")


# ---- while training --------------------------------------------------------------------------------------------------


def due(training: Training, averaged: int) -> bool:
    """Whether a snapshot belongs to the step that brought the averages to `averaged` samples."""
    every, batch = training.snapshot_every, training.batch_size
    return every is not None and averaged >= batch and averaged // every != (averaged - batch) // every


def count(training: Training) -> int:
    """Snapshots of each length that a whole training leaves: those that are due, and the last."""
    if training.snapshot_every is None:
        return 0
    total = training.steps * training.batch_size
    return total // training.snapshot_every + (not due(training, total))


def save(engine: Engine, folder: Path) -> None:
    """Write a snapshot of each length; all ranks call, and all raise where rank 0 cannot write.

    Training stands still meanwhile: so a checkpoint that is saved afterwards never has fewer snapshots than it should.
    """
    trouble: OSError | None = None
    for length in engine.training.average_lengths:
        weights = engine.export(length_name(length))
        if engine.ranks.first and trouble is None:
            about = {"samples": engine.averaged, "length": length, "batch": engine.training.batch_size,
                     "buffers": engine.buffers()}  # fmt: skip
            try:
                write(folder / f"{length_name(length)}-{engine.averaged:012d}.safetensors", weights, about)
            except OSError as error:
                trouble = error
    told = [text for text in engine.ranks.gather_objects(str(trouble) if trouble else None) if text]
    if told:
        raise UserError(f"{folder}: a snapshot cannot be written ({told[0]}); make room, then start again") from trouble


def tidy(folder: Path, training: Training, averaged: int) -> None:
    """Remove what a whole training of `averaged` good samples does not leave: steps that were rolled back made it."""
    for path, (samples, _) in snapshots_in(folder).items():
        if samples != averaged and not (samples < averaged and due(training, samples)):
            path.unlink()


def take_over(other: Path, folder: Path, training: Training, until: int) -> None:
    """Copy the snapshots of another run of this kind, up to the position from which ours goes on."""
    for path, (samples, _) in snapshots_in(other).items():
        if samples <= until and due(training, samples) and not (folder / path.name).exists():
            with atomic_path(folder / path.name) as temporary:
                shutil.copyfile(path, temporary)


def snapshots_in(folder: Path) -> dict[Path, tuple[int, str]]:
    """Path -> (samples, length) of the snapshots in a folder, from old to new."""
    matches = {path: NAME.fullmatch(path.name) for path in sorted(folder.glob("length-*.safetensors"))}
    found = {path: (int(match[2]), match[1].removeprefix("length-")) for path, match in matches.items() if match}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def write(path: Path, weights: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Whole weights as one safetensors file that says what they are: one key, so that the bytes are always the same."""
    save_tensors(path, {name: value.contiguous() for name, value in weights.items()}, {"ldm": canonical_json(about)})
