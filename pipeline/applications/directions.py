"""Directions in the latents, found from labelled images: from those of one value to those of another, for sliders.

d = mean of z over images of B - mean over images of A, of normalised latents z (Larsen et al. 2016, "Autoencoding
beyond pixels using a learned similarity metric", has it for attributes of faces). Added to an image's latents it lays
one mean image over it; `edit.py` adds it to what the denoiser says at much noise, so that the steps after it make an
image of that. A direction is a file NAME.safetensors of one tensor, `direction` float32 [C, *sides], with metadata
`about` in JSON: the model in whose latents it lies, from, to, target, how many images of each, digest of the features.

Found by `ldm probe FEATURES --between A,B`, used by `ldm edit --along`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from pipeline.applications.probe import LEAST, Table
from pipeline.errors import UserError, many
from pipeline.files import canonical_json, digest, save_tensors
from pipeline.generate.generator import Generator

Array = np.ndarray[Any, np.dtype[Any]]
FINDS = "`ldm probe FEATURES --between A,B --out NAME.safetensors`"


def found(table: Table, before: str, after: str, target: str | None = None) -> tuple[Array, dict[str, Any]]:
    """The direction float32 [C, *sides] from images labelled `before` to those labelled `after`, and what made it.

    target: the column that says so; none: the labels. Images that training held out, where the features say so, are
    left out, so that they may show what it does. UserError for a column that is not there, values of fewer than 20
    images, and features without latents (`--bare`).
    """
    values = table.column("--target", target) if target else table.known["labels"]
    if "latents" not in table.beside:
        raise UserError(f"{table.path}: has no latents; run `ldm features` without --bare")
    latents = table.array("latents").astype(np.float64)
    seen = table.known["split"] != "val" if "split" in table.known else np.ones(len(values), bool)
    means, counts = [], []
    for value in (before, after):
        rows = latents[(values == value) & seen]
        if len(rows) < LEAST:
            there = ", ".join(sorted(set(values) - {""})[:20])
            raise UserError(
                f"--between: {many(len(rows), 'image')} of {value!r}, expected {LEAST} at least; values: {there}"
            )
        means.append(rows.mean(0))
        counts.append(len(rows))
    about = {"from": before, "to": after, "target": target, "images": counts, "features": digest(table.about)}
    return (means[1] - means[0]).astype(np.float32), {"model": table.about.get("model", {}), **about}


def write(path: Path, direction: Array, about: dict[str, Any]) -> None:
    """Whole or not at all."""
    save_tensors(path, {"direction": torch.from_numpy(direction)}, {"about": canonical_json(about)})


def said(path: Path) -> Any:
    """What a file says that a direction was made of; None where it says nothing."""
    try:
        return _about(path.read_bytes())
    except (KeyError, TypeError, ValueError):
        return None


def read(path: Path, model: Generator) -> Array:
    """`decoded` of a file."""
    try:
        return decoded(f"--along {path}", path.read_bytes(), model)
    except OSError as error:
        raise UserError(f"--along {path}: cannot be read ({error.strerror})") from None


def decoded(name: str, content: bytes, model: Generator) -> Array:
    """A direction float32 [C, *sides] in the latents of `model`, of a file's bytes. UserError for another file, and for
    a direction in other latents. name: begins the message."""
    try:
        direction, about = load(content)["direction"].numpy(), _about(content)
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise UserError(f"{name}: is no direction; {FINDS} writes one") from None
    shape = (model.options["latent"]["channels"], *model.sides[0])
    if direction.shape != shape or direction.dtype != np.float32 or not np.isfinite(direction).all():
        raise UserError(f"{name}: {direction.dtype}{direction.shape}, expected finite float32 of {shape}")
    if _latents(about.get("model") if isinstance(about, dict) else None) != _latents(model.about):
        raise UserError(f"{name}: was found in other latents; find it again in features of this model")
    return direction


def _about(content: bytes) -> Any:
    """Of the JSON header behind 8 bytes that say how long it is, the metadata `about`."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["about"])


def _latents(about: Any) -> Any:
    """Which latents a model has: those of an encode stage, where it says so."""
    lineage = about.get("lineage") if isinstance(about, dict) else None
    return lineage.get("encode") if isinstance(lineage, dict) else None
