"""Scenes of one file a band (`data.source.bands`), as Landsat and Sentinel-2 are distributed: which files are one, and
its images. What a file holds is `raster_files.py`'s business."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.listing import LeftOut, plain
from pipeline.data.raster_files import Array, Held
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.schema.data import Data


def grouped(names: Sequence[Path], bands: Sequence[str], left_out: LeftOut) -> list[Path]:
    """The file of the first band of each scene: what is before the endings `bands` is common to its files. What has
    another ending is counted, and scenes without all bands."""
    found: dict[str, set[str]] = defaultdict(set)
    for name in names:
        ending = next((band for band in bands if name.as_posix().endswith(band)), None)
        if ending is None:
            left_out.add("files that end in none of `data.source.bands`", str(name))
        else:
            found[name.as_posix().removesuffix(ending)].add(ending)
    for scene in [scene for scene, there in found.items() if len(there) < len(bands)]:
        left_out.add("scenes without all of `data.source.bands`", f"{scene}{min(found.pop(scene))}")
    return sorted(Path(f"{scene}{bands[0]}") for scene in found)


def files_of(first: Path, bands: Sequence[str]) -> list[Path]:
    """The files of a scene, in the order of its bands; first: that of the first band."""
    return [Path(f"{first.as_posix().removesuffix(bands[0])}{band}") for band in bands]


def name_of(first: Path, bands: Sequence[str]) -> str:
    """What a scene is called, with the suffix of its files: a name without what its bands' files end in."""
    return f"{first.as_posix().removesuffix(bands[0]).rstrip('_-. /') or 'scene'}{first.suffix}"


def opened(first: Path, data: Data, open_file: Callable[[Path, Data], Held]) -> Held:
    """The images of a scene, [C, h, w] of one band of each file. Raises BadImage for a file that cannot be read, and
    UserError for files of unlike sizes."""
    bands: Sequence[str] = data.source.bands  # type: ignore[union-attr, assignment]
    single = data.model_copy(update={"channels": 1})
    files = files_of(first, bands)
    held = [open_file(file, single) for file in files]
    for file, one in zip(files, held, strict=True):
        if (one.sides, one.count) != (held[0].sides, held[0].count):
            sizes = [f"{'x'.join(map(str, each.sides))}" for each in (held[0], one)]
            raise UserError(
                f"data.source.bands: {plain(str(files[0]))} is {sizes[0]} (height x width) and {plain(file.name)} "
                f"{sizes[1]}; name bands of one size, or resample the others"
            )

    def read(number: int) -> Array:
        return np.concatenate([one.read(number) for one in held])

    return Held(held[0].count, read, blocks=held[0].blocks, sides=held[0].sides)
