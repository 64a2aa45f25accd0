"""From values in a file's own unit to the [-1, 1] that models see, back, and to 8-bit pictures.

Of each band x = 2 (v - low) / (high - low) - 1, cut to [-1, 1]. A data set's map is `values.json` in its ingest
artifact; a model of it carries the map in its options. Images of 8 bits of gray or RGB have none: v / 127.5 - 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.files import read_json, write_json

if TYPE_CHECKING:
    import torch

    from pipeline.schema.values import Values

Array = np.ndarray[Any, np.dtype[Any]]
FILE = "values.json"


@dataclass(frozen=True)
class ValueMap:
    """dtype: numpy's name. low, high: the values of -1 and 1, by band. bands: those that are shown, one or three;
    black, white: the values of 0 and 255, of each of these. unit: for people."""

    dtype: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    bands: tuple[int, ...]
    black: tuple[float, ...]
    white: tuple[float, ...]
    unit: str | None = None

    @classmethod
    def of(cls, values: Values, channels: int, pairs: Sequence[Sequence[float]]) -> ValueMap:
        """The map that a config asks for; pairs: (low, high) of all bands (one pair), or of each."""
        low, high = zip(*(pairs if len(pairs) == channels else [pairs[0]] * channels), strict=True)
        bands = values.show.bands or (tuple(range(3)) if channels >= 3 else (0,))
        shown = [values.show.range or (low[band], high[band]) for band in bands]
        black, white = zip(*shown, strict=True)
        return cls(values.dtype, tuple(low), tuple(high), tuple(bands), tuple(black), tuple(white), values.unit)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ValueMap:
        kept: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
        return cls(**kept)

    @classmethod
    def load(cls, ingest: Path) -> ValueMap | None:
        """The map of an ingest artifact's folder; None for images of 8 bits of gray or RGB."""
        return cls.from_json(read_json(ingest / FILE)) if (ingest / FILE).exists() else None

    def json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def save(self, ingest: Path) -> None:
        write_json(ingest / FILE, self.json())

    def floats(self, images: Array, axis: int = -3) -> Array:
        """float32 in [-1, 1] of values; `axis` is that of the bands: -3 of [..., C, H, W], -1 of [..., H, W, C]."""
        low, high = self._ends(images.ndim, axis)
        x = 2 * (images.astype(np.float64) - low) / (high - low) - 1
        return np.asarray(x.clip(-1, 1), np.float32)

    def floats_last(self, images: Array) -> Array:
        """`floats` of [..., H, W, C]."""
        return self.floats(images, -1)

    def tensor(self, images: Array) -> torch.Tensor:
        """`floats` of [..., C, H, W] as a tensor."""
        import torch

        return torch.from_numpy(self.floats(images))

    def values(self, x: Array, axis: int = -3) -> Array:
        """Values of floats in [-1, 1] (cut to it), of the map's dtype: whole numbers are rounded."""
        low, high = self._ends(x.ndim, axis)
        v = low + (x.astype(np.float64).clip(-1, 1) + 1) / 2 * (high - low)
        kind = np.dtype(self.dtype)
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            v = np.rint(v).clip(limits.min, limits.max)
        return np.asarray(v, kind)

    def shown(self, images: Array) -> Array:
        """8-bit pictures uint8 [..., H, W, 1 or 3] of values [..., H, W, C]."""
        chosen = images[..., list(self.bands)].astype(np.float64)
        black, white = np.array(self.black), np.array(self.white)
        return np.asarray(np.rint(((chosen - black) / (white - black)).clip(0, 1) * 255), np.uint8)

    def _ends(self, dimensions: int, axis: int) -> tuple[Array, Array]:
        shape = [1] * dimensions
        shape[axis] = len(self.low)
        return np.array(self.low).reshape(shape), np.array(self.high).reshape(shape)


def floats(images: torch.Tensor) -> torch.Tensor:
    """float32 in [-1, 1] of images that a loader gave: uint8 of 8-bit images; others are such floats already."""
    return images if images.is_floating_point() else images.float() / 127.5 - 1
