"""Averages of weights after training: weights of any relative length, made of the snapshots that training left.

What an average is, and how others follow from a few, is in `models/ema.py`; snapshots are written by
`training/averages.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.errors import UserError
from pipeline.schema.names import length_name
from pipeline.training.snapshots import FOLDER, snapshots_in, write

MISFIT = 0.01  # of a profile, above which a length is made with a warning


@dataclass(frozen=True)
class Recipe:
    """How an average is made of stored ones: paths and factors (sum 1), with the misfit of the profile (0: exact)."""

    length: float
    samples: int
    paths: tuple[Path, ...]
    factors: tuple[float, ...]
    misfit: float

    def __str__(self) -> str:
        return (
            f"length {self.length:g} at {self.samples:,} samples, of {len(self.paths)} stored averages, misfit of the "
            f"profile {self.misfit:.1e}"
        )


def plan(folder: Path, length: float, at: int | None = None, use: Sequence[str] | None = None) -> Recipe:
    """The recipe for an average of any `length` from the snapshots in a folder.

    at: the average ends at the newest snapshot up to these samples; default: the end of training. use: lengths (as in
    the file names) to make it of; default: all. UserError where no snapshot is that early, or the length means nothing.
    """
    import numpy as np

    from models import ema

    found = snapshots_in(folder)
    if not found:
        raise UserError(
            f"{folder}: holds no snapshots; train with `average_lengths: [0.05, 0.1]` and `snapshot_every`, in samples"
        )
    kept = {p: s for p, s in found.items() if (at is None or s[0] <= at) and (use is None or s[1] in use)}
    if not kept:
        first = min(samples for samples, _ in found.values())
        raise UserError(f"{folder}: no snapshot up to {at} samples; the first is at {first}")
    samples, lengths = (np.array([float(row[i]) for row in kept.values()]) for i in (0, 1))
    end, batch = int(samples.max()), int(about(next(iter(kept)))["batch"])
    try:
        factors, misfit = ema.fit(samples, lengths, end, length, batch)
    except ValueError as error:
        raise UserError(f"--length: {error}") from None
    return Recipe(length, end, tuple(kept), tuple(float(x) for x in factors), misfit)


def make(recipe: Recipe, path: Path, made_of: str | None = None) -> None:
    """Write the average as a whole model, fp32: sums in float64, a tensor at a time; buffers are the newest's.

    made_of: content digest of the artifact, written into the file, so that it is not taken for another's.
    """
    import torch
    from safetensors import safe_open

    newest = about(recipe.paths[-1])
    readers: list[Any] = [safe_open(path, "pt") for path in recipe.paths]
    weights = {}
    for name in readers[-1].keys():  # noqa: SIM118 - no mapping
        value = readers[-1].get_tensor(name)
        if name not in newest["buffers"]:
            total = torch.zeros(value.shape, dtype=torch.float64)
            for factor, reader in zip(recipe.factors, readers, strict=True):
                total.add_(reader.get_tensor(name).double(), alpha=factor)
            value = total.to(value.dtype)
        weights[name] = value
    keys = {"samples": recipe.samples, "length": recipe.length, "misfit": recipe.misfit, "made_of": made_of}
    write(path, weights, {**keys, "batch": newest["batch"], "buffers": newest["buffers"]})


def about(path: Path) -> dict[str, Any]:
    """What a file of weights says of itself; empty where it says nothing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads((file.metadata() or {}).get("ldm", "{}")))
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; give a file of weights") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def weights_path(artifact: Artifact, which: str = "ema") -> Path:
    """The file of the weights that a name means: a .safetensors file, a name of the artifact's own (ema, live,
    ema-50000, length-0.05), or length-L of any L, which is made of the snapshots and kept in the artifact's work/."""
    if which.endswith(".safetensors"):
        check(Path(which), artifact.content, artifact.name)
        return Path(which)
    own = artifact.path / f"{which}.safetensors"
    if own.is_file():
        return own
    if not which.startswith("length-"):
        there = ", ".join(sorted(path.stem for path in artifact.path.glob("*.safetensors")))
        raise UserError(
            f"weights {which!r}: {artifact.name} has {there}; or length-L of any L where it has snapshots, or a file"
        )
    try:
        length = float(which.removeprefix("length-"))
    except ValueError:
        raise UserError(f"weights {which!r}: expected a number, such as length-0.1") from None
    path = artifact.path / "work" / "averages" / f"{length_name(length)}.safetensors"
    if not path.exists():
        make(warned(plan(artifact.path / FOLDER, length)), path, artifact.content)
    return path


def warned(recipe: Recipe) -> Recipe:
    """The same; says so where the stored averages do not reach that far."""
    if recipe.misfit > MISFIT:
        print(
            f"length {recipe.length:g}: the stored averages meet this profile to {recipe.misfit:.1%} only; for better, "
            "a length nearer to the stored ones, or more snapshots",
            flush=True,
        )
    return recipe


def check(path: Path, content: str, name: str) -> None:
    """Refuse weights that were averaged over another training than the model's. Raises UserError."""
    made_of = about(path).get("made_of")
    if made_of not in (None, content):
        raise UserError(f"{path}: made of a training with content {made_of[:12]}, but the model is {name}")


def find(source: str, root: str | Path) -> Artifact:
    """The trained artifact that a run, an artifact or a model means, as `ldm lineage` takes them: of a run or a model
    that of diffusion. Raises UserError where there is none."""
    from pipeline.past import lineage

    title, artifacts = lineage.artifacts_of(root, source)
    trained = [a for a in artifacts if a.stage == "diffusion"]
    last = [a for a in trained if not any(a in lineage.parents(b, trained) for b in trained)]  # not what it began with
    named = [a for a in artifacts if a.name == title] or last
    if not named:
        raise UserError(f"{source}: {title} has no finished diffusion stage")
    if len(named) > 1:
        raise UserError(f"{source}: {len(named)} artifacts of diffusion are meant: {', '.join(a.name for a in named)}")
    if named[0].stage not in ("autoencoder", "diffusion"):
        raise UserError(f"{named[0].path}: an artifact of {named[0].stage}; give one of diffusion or autoencoder")
    return named[0]
