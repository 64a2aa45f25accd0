"""Which files of a folder hold the weights that diffusers has saved: whole or in shards, as they are or as a variant.

    diffusion_pytorch_model.safetensors               diffusion_pytorch_model.fp16.safetensors
    diffusion_pytorch_model-00001-of-00002.safetensors   diffusion_pytorch_model.fp16-00001-of-00002.safetensors
    diffusion_pytorch_model.safetensors.index.json    diffusion_pytorch_model.safetensors.index.fp16.json

Before diffusers 0.30 the variant of a shard stood behind its number. Only safetensors are read, no pickles.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.generate.diffusers_names import WEIGHTS, Weights

NAME = r"([A-Za-z0-9_-]+?)"  # of a variant
FILE = re.compile(rf"{WEIGHTS}(?:\.{NAME})?(?:-(\d+)-of-(\d+))?(?:\.{NAME})?\.safetensors")
INDEX = re.compile(rf"{WEIGHTS}(?:\.{NAME})?\.safetensors\.index(?:\.{NAME})?\.json")
INDEXED, WHOLE, SHARDED = range(3)  # in the order in which they are believed


def load(folder: Path, variant: str | None = None) -> tuple[Weights, list[str]]:
    """All tensors of a folder in float32, and what is to be said of them.

    variant: "fp16" and the like; default: the weights without one, else the only variant. UserError where files are
    missing, damaged, or say nothing of which variant is meant.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    chosen, files = choose(folder, variant)
    weights: Weights = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{folder}: {file.name} is missing; fetch it again")
        try:
            weights |= load_file(str(file))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: not a whole safetensors file ({error}); fetch it again") from None
    floats = {name: value for name, value in weights.items() if value.is_floating_point()}
    stored = {str(value.dtype).removeprefix("torch.") for value in floats.values()} - {"float32"}
    notes = [f"of the variant {chosen}"] if chosen else []
    notes += [f"weights stored as {', '.join(sorted(stored))} were made float32"] if stored else []
    return weights | {name: value.float() for name, value in floats.items()}, notes


def choose(folder: Path, variant: str | None = None) -> tuple[str, list[Path]]:
    """The variant ("": none) and its files. UserError as `load`."""
    found = _variants(folder)
    if not found:
        pickles = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "none are there"
        raise UserError(
            f"{folder}: {WEIGHTS}.safetensors is missing, and pickles are not read ({pickles}): load it in diffusers "
            "and save it again by save_pretrained(DIR), which writes safetensors"
        )
    chosen = variant if variant is not None else "" if "" in found else next(iter(found))
    named = ", ".join(sorted(name or "none" for name in found))
    if chosen not in found:
        raise UserError(f"{folder}: no weights of the variant {chosen!r} are there; found: {named}")
    if variant is None and chosen and len(found) > 1:
        raise UserError(f"{folder}: weights of several variants are there: {named}; say which by --variant")
    return chosen, found[chosen][min(found[chosen])]


def _variants(folder: Path) -> dict[str, dict[int, list[Path]]]:
    """By variant ("": none): its files, by where that is known from."""
    found: dict[str, dict[int, list[Path]]] = defaultdict(dict)
    shards: dict[tuple[str, int], list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if match := INDEX.fullmatch(path.name):
            found[match[1] or match[2] or ""][INDEXED] = _indexed(path)
        elif match := FILE.fullmatch(path.name):
            name = match[1] or match[4] or ""
            if match[2]:
                shards[name, int(match[3])].append(path)
            else:
                found[name][WHOLE] = [path]
    for (name, count), paths in shards.items():  # without an index they are believed if all are there
        if name not in found and len(paths) < count:
            raise UserError(f"{folder}: {len(paths)} of {count} files of weights are there; fetch it again")
        found[name].setdefault(SHARDED, paths)
    return dict(found)


def _indexed(path: Path) -> list[Path]:
    """The files that an index names, which lie beside it."""
    try:
        table: dict[str, Any] = read_json(path)["weight_map"]
        return [path.parent / Path(name).name for name in sorted(set(table.values()))]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not an index of weights; fetch it again") from None
