"""What all readers of diffusers' folders share: a config.json whose every key is looked at, and what is read of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.generate.diffusers_names import Weights

# Keys of a config.json that say nothing about what a network computes in evaluation, or that belong to pipelines.
WITHOUT_EFFECT = {
    "sample_size", "dropout", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast",
    "num_train_timesteps", "upcast_attention",
}  # fmt: skip


@dataclass(frozen=True)
class Imported:
    """A model read from a folder of diffusers.

    family: of models/. options: `kind` and all fields. weights: by our names; of a backbone, those of the network with
    its conditioner. classes: of a backbone, without the null class; None: unconditional. space: of an autoencoder, the
    latents' mean and deviation by channel that its denoisers were trained with.
    """

    family: str
    options: dict[str, Any]
    channels: int
    size: int | None
    weights: Weights = field(repr=False)
    classes: int | None = None
    notes: tuple[str, ...] = ()
    space: tuple[list[float], list[float]] | None = None


class Keys:
    """A config.json, whose keys are looked at one by one; those that nobody knows are refused."""

    def __init__(self, values: Mapping[str, Any], folder: Path) -> None:
        self.values = {key: value for key, value in values.items() if not key.startswith("_")}
        self.folder, self.seen, self.name = folder, set(WITHOUT_EFFECT), values["_class_name"]

    def get(self, key: str, default: Any) -> Any:
        """The value, or what diffusers takes where a config is silent."""
        self.seen.add(key)
        return self.values.get(key, default)

    def fixed(self, known: Mapping[str, Any]) -> None:
        """Refuse other values than the known ones, and any key nobody asked for that says something."""
        for key, values in known.items():
            value = self.get(key, values[0])
            if isinstance(values, str):  # "all KIND"
                kind = values.removeprefix("all ")
                if any(v != kind for v in self.values.get(key, [])):
                    self.refuse(key, f"expected {values}")
            elif value not in values:
                self.refuse(key, f"expected {values[0]}")
        for key, value in self.values.items():
            if key not in self.seen and value not in (None, False):
                self.refuse(key, "an option that is not known here")

    def refuse(self, key: str, why: str) -> None:
        raise UserError(f"{self.folder}: `{key}: {self.values.get(key)}` of this {self.name} has no place here ({why})")

    @property
    def size(self) -> int | None:
        """`sample_size`: the side of the images or latents that it was made for."""
        size = self.values.get("sample_size")
        return int(size if isinstance(size, int) else max(size)) if size else None

    def widths(self, default: list[int]) -> tuple[int, tuple[int, ...]]:
        """`block_out_channels` as width and multipliers."""
        found = self.get("block_out_channels", default)
        width = math.gcd(*found)
        return width, tuple(w // width for w in found)

    def channels(self, default: int) -> int:
        """As many as go in and come out."""
        found = int(self.get("in_channels", default))
        if self.get("out_channels", default) not in (found, None):
            self.refuse(
                "out_channels", f"expected {found}, as many as go in: a learned variance is left out of a DiT only"
            )
        return found

    def options(self, kind: str, config: Any) -> dict[str, Any]:
        """`{"kind": ..., **fields}` of a `Config`."""
        from models import registry

        return registry.written(kind, config)
