"""Images that are not 8 bits of gray or RGB: `data.values` (depth, unit, what -1 and 1 mean) and the source of their
files, `data.source.kind: rasters`."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.schema.section import LATER, Place, Positive, Section

MOST_CHANNELS = 64
Finite = Annotated[float, Field(allow_inf_nan=False)]
Pair = tuple[Finite, Finite]


class RastersSource(Section):
    """A folder of files of measured values: TIFF and PNG of any depth and number of bands, .npy, DICOM, NIfTI, GeoTIFF.
    A file may hold several images: frames, slices of a volume, pages, tiles of a scene."""

    kind: Literal["rasters"]
    path: Place = Field(description="The folder, or one file.")
    classes: bool = Field(
        False, description="Whether the name of the folder that a file lies in is its class, as in folders of images."
    )
    plane: Literal["axial", "coronal", "sagittal"] = Field(
        "axial", description="How volumes (NIfTI) are sliced, by their orientation in space."
    )
    tile: int | None = Field(
        None, ge=8, le=2048, description="Side of the tiles that scenes (TIFF, .npy) are cut into; null: a file is one."
    )
    block: Positive = Field(
        4,
        description="Tiles a side of a block of a scene, or slices of a block of a volume; with "
        "`split: {by: column, column: block}` those of a block stay together.",
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="Pixels from a tile to the next of its block, fewer than `tile`: so tiles overlap, and a small "
        "scene gives many; none lies in two blocks. null: side by side.",
        json_schema_extra=LATER,
    )
    bands: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        None,
        min_length=1,
        max_length=MOST_CHANNELS,
        description="Of scenes of one file a band: what the names of these files end in, in the order of the bands, "
        "such as [_B4.TIF, _B3.TIF, _B2.TIF]; files that are alike before that are one scene.",
        json_schema_extra=LATER,
    )
    rescale: bool = Field(
        True,
        description="Values in their unit, by the scale and offset that DICOM, NIfTI and GeoTIFF files state; false: "
        "as they are stored.",
    )

    @model_validator(mode="after")
    def _bands_differ(self) -> RastersSource:
        for band in self.bands or ():
            if sum(other.endswith(band) for other in self.bands or ()) > 1:
                raise ValueError(f"`bands`: {band!r} is the end of another one as well; write more of the names")
        if self.stride is not None and (self.tile is None or self.stride >= self.tile):
            raise ValueError(f"`stride`: {self.stride} given, expected fewer pixels than `tile`; or leave it out")
        return self


class Show(Section):
    """How values become 8-bit pictures, in previews and grids; it changes nothing else."""

    bands: tuple[Annotated[int, Field(ge=0, lt=MOST_CHANNELS)], ...] | None = Field(
        None,
        min_length=1,
        max_length=3,
        description="One band as gray or three as red, green, blue, from 0; default: the first three, or the first.",
    )
    range: Pair | None = Field(
        None, description="Values that are black and white; default: those that -1 and 1 stand for."
    )

    @model_validator(mode="after")
    def _one_or_three(self) -> Show:
        if self.bands is not None and len(self.bands) == 2:
            raise ValueError("`bands` are 2; expected one (gray) or three (red, green, blue)")
        if self.range is not None:
            _rises("range", self.range)
        return self


class Values(Section):
    """What the values of an image are, and the function to the [-1, 1] that models see:
    x = 2 (v - low) / (high - low) - 1, cut at both ends; low and high by `range`, `window` or `percentiles`."""

    dtype: Literal["uint8", "uint16", "int16", "float32"] = Field(
        description="Type of a value, in shards and in samples. A file whose values it cannot hold goes to quarantine."
    )
    unit: str | None = Field(None, max_length=32, description="What a value counts, such as HU; for people.")
    range: Pair | tuple[Pair, ...] | None = Field(
        None, description="[low, high] of all bands, or one such pair a band."
    )
    window: Pair | None = Field(
        None, description="[centre, width] as radiologists say it: low is centre - width / 2, high centre + width / 2."
    )
    percentiles: Pair | None = Field(
        None, description="[low, high] as percentiles of the training split's values, of each band: such as [0.5, 99.5]"
    )
    show: Show = Show()

    @model_validator(mode="after")
    def _one_way(self) -> Values:
        given = [name for name in ("range", "window", "percentiles") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected one of `range`, `window` and `percentiles`, got {' and '.join(given) or 'none'}"
            )
        if self.window is not None and not self.window[1] > 0:
            raise ValueError(f"`window` {list(self.window)}: expected the centre, then a width above 0")
        for pair in self.pairs or ():
            _rises(given[0], pair)
        if self.percentiles is not None:
            _rises("percentiles", self.percentiles)
            if self.percentiles[0] < 0 or self.percentiles[1] > 100:
                raise ValueError(f"`percentiles` {list(self.percentiles)}: expected numbers from 0 to 100")
        return self

    @property
    def pairs(self) -> tuple[Pair, ...] | None:
        """[low, high] of all bands (one pair) or of each; None where the training split decides."""
        if self.window is not None:
            centre, width = self.window
            return ((centre - width / 2, centre + width / 2),)
        if self.range is None:
            return None
        several = [pair for pair in self.range if isinstance(pair, tuple)]
        low, *_, high = self.range
        return tuple(several) or ((float(low), float(high)),)  # type: ignore[arg-type]

    def fits(self, channels: int) -> str | None:
        """Why this does not fit images of so many channels, in words; None where it does."""
        if self.pairs is not None and len(self.pairs) not in (1, channels):
            return f"`values.range` has {len(self.pairs)} pairs for {channels} `channels`; give one, or one a band"
        if any(band >= channels for band in self.show.bands or ()):
            return f"`values.show.bands` {list(self.show.bands or ())}: there are {channels} bands, from 0"
        return None


def _rises(name: str, pair: Pair) -> None:
    if not 0 < pair[1] - pair[0] < math.inf:
        raise ValueError(f"`{name}` {list(pair)}: expected the lowest value, then the highest, a finite way above it")
