"""What a model costs: its parameters, and the FLOPs of a forward pass as torch counts them. Nothing is allocated.

Any kind that the registry finds is counted, by running its code on the meta device, where tensors have shapes only.
That takes a quarter of a second a model: `costs.json` holds what was counted for all presets at the usual shapes, with
the digest of the sources it was counted from; other sources are counted anew. `python -m models.costs` renews it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import registry
from models.autoencoders import blank, latent_sides, whole_sides
from models.conditioning import Embedded
from models.patches import Size, sides_of
from models.routing import Route

HERE = Path(__file__).parent
TABLE = HERE / "costs.json"
SHARED = ("layers.py", "patches.py", "conditioning/embedded.py", "posterior.py")  # what kinds of both families import
SHAPES = {"backbones": (4, 32), "autoencoders": (3, 256)}  # channels and side that the table holds


class Cost(NamedTuple):
    """Of one model."""

    parameters: int  # without the table of classes
    flops: int  # matrix products and convolutions of one sample's forward pass, two FLOPs a multiply-add


def preset(family: str, kind: str, name: str, channels: int, size: int, **fields: Any) -> Cost:
    """Cost of a preset on inputs [channels, size, size], with `fields` in place of its own: from the table if it is in
    it, else counted. ValueError where it does not fit them."""
    usual = (channels, size) == SHAPES[family] and not fields
    row = _stored().get(family, {}).get(f"{kind} {name}") if usual else None
    if row is not None:
        return Cost(*row)
    count = {"backbones": backbone, "autoencoders": autoencoder}[family]
    return count({"kind": kind, "preset": name, **fields}, channels, size)


def backbone(
    options: Mapping[str, Any], channels: int, size: Size, route: tuple[float, int, int] | None = None
) -> Cost:
    """Cost of a backbone on latents [channels, *sides] (size: of a square, or the sides); route: share, first and end
    of `Route`. ValueError where it does not fit them."""
    model: Any = registry.outline("backbones", options, channels=channels, size=size)
    with torch.device("meta"):
        inputs = (torch.empty(1, channels, *sides_of(size)), torch.empty(1), outlined(model))
        how = {"route": Route(torch.empty(1, math.prod(model.grid)), *route)} if route else {}
    return Cost(_parameters(model), _count(lambda: model(*inputs, **how)))


def outlined(model: Any, tokens: int = 64) -> Embedded:
    """A condition of one sample as a backbone wants it, without numbers; `tokens` of a caption where it attends."""
    vector = torch.empty(1, model.condition_width, device="meta")
    if not getattr(model, "attends", False):
        return Embedded(vector)
    return Embedded(vector, torch.empty(1, tokens, model.condition_width, device="meta"))


def autoencoder(options: Mapping[str, Any], channels: int, size: Size) -> Cost:
    """Cost of an autoencoder on images [channels, *sides] (size: of a square, or the sides; of clips that are given the
    size of a square, of 9 frames): encoder and decoder."""
    model: Any = registry.outline("autoencoders", options, channels=channels)
    sides = latent_sides(model, whole_sides(model, size))
    with torch.device("meta"):
        x, z = blank(model, 1, channels, size), torch.empty(1, model.latent_channels, *sides)
    return Cost(_parameters(model), _count(lambda: model.encode(x)) + _count(lambda: model.decode(z)))


def _parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _count(forward: Any) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # a second to import

    # torch's counter knows the two products of the plain attention, not those of every fused one
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward()
    return int(counter.get_total_flops())


# ---- the table -------------------------------------------------------------------------------------------------------


def sources_digest(family: str) -> str:
    """SHA-256 over the sources that decide on a family's costs."""
    total = hashlib.sha256()
    for file in (*sorted((HERE / family).glob("*.py")), *(HERE / name for name in SHARED)):
        total.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=1)
def _stored() -> dict[str, dict[str, list[int]]]:
    """Rows of the table by family; none of a family whose sources have changed since."""
    if not TABLE.exists():
        return {}
    table = json.loads(TABLE.read_text())
    return {family: part["costs"] for family, part in table.items() if part["sources"] == sources_digest(family)}


def count_all() -> dict[str, Any]:
    """The table anew, by counting each preset that fits the usual shapes."""
    table = {}
    for family, shape in SHAPES.items():
        count = {"backbones": backbone, "autoencoders": autoencoder}[family]
        rows = {}
        for kind in registry.kinds(family):
            for name in registry.presets(family, kind):
                rows[f"{kind} {name}"] = list(count({"kind": kind, "preset": name}, *shape))
        table[family] = {"sources": sources_digest(family), "costs": rows}
    return table


if __name__ == "__main__":
    rows = json.dumps(count_all(), indent=1)
    TABLE.write_text(rows.replace("[\n    ", "[").replace(",\n    ", ", ").replace("\n   ]", "]") + "\n")
