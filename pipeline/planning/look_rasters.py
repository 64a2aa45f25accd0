"""A look at files of measured values: whether a source is such, of how many bands and which type, what keeps its images
together."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import rasters, sources
from pipeline.data.folders import files_under
from pipeline.data.listing import Row
from pipeline.data.raster_files import WITHOUT_DATA, Array, layout, numbers
from pipeline.data.transforms import BadImage
from pipeline.errors import UserError
from pipeline.schema.data import Data
from pipeline.schema.values import MOST_CHANNELS

LOOKED = 12  # files whose header is read, and images whose values are
BAND = re.compile(r"_(?:SR_)?B\d{1,2}A?(?:_\d+m)?\.tiff?$", re.IGNORECASE)  # of Landsat and Sentinel-2
FEW, SIDE, TILES = 64, 128, (64, 32)  # images of at least SIDE pixels are cut into tiles where they are FEW
OVERLAP = 512  # fewer tiles than this overlap: a model soon knows so few by heart


def holds_rasters(path: Path) -> bool:
    """Whether a file, or most files of a folder that could be, hold values that are no 8 bits of gray or RGB."""
    some = _some(path)
    return bool(some) and 2 * sum(map(_deep, some)) > len(some)


def _some(path: Path) -> list[Path]:
    found, _ = files_under(path, lambda file: rasters.kind_of(file) is not None)
    files = [path if path.is_file() else path / name for name in found]
    return files[:: -(-len(files) // LOOKED)] if files else []


def _deep(path: Path) -> bool:
    kind = rasters.kind_of(path)
    try:
        if kind == "png":
            with open(path, "rb") as file:
                return file.read(25)[24:] == b"\x10"  # bits a value
        if kind == "tiff":
            shape, dtype = layout(path)
            return dtype != "uint8" or shape[0] not in (1, 3, 4)
    except (BadImage, OSError):
        return False
    return True  # DICOM, NIfTI, .npy


def _bands(path: Path) -> int | None:
    """Bands of a file's images; None where it cannot be read."""
    kind = str(rasters.kind_of(path))
    try:
        if kind == "tiff":
            return layout(path)[0][0]
        if kind == "png":
            with open(path, "rb") as file:
                return {b"\2": 3, b"\4": 2, b"\6": 4}.get(file.read(26)[25:], 1)  # by PNG's colour type
        if kind == "npy":
            shape = numbers(path).shape
            most = 15 if len(shape) == 3 else MOST_CHANNELS  # fewer images than 16 [n, h, w] are no source: bands
            return next((n for n in (shape[-1], shape[-3]) if n <= most), 1) if len(shape) > 2 else 1
        held = rasters.opened(path, data_of({"kind": "rasters", "path": str(path)}, 1))
        return len(held.read(held.count // 2))
    except (BadImage, OSError):
        return None


def _endings(path: Path) -> list[str]:
    """What names of files end in where scenes have a file a band, by the bands' numbers: of the size that most have."""
    names, _ = files_under(path, lambda file: rasters.kind_of(file) == "tiff")
    scenes: dict[str, dict[str, Path]] = defaultdict(dict)
    for name in (name.as_posix() for name in names if path.is_dir()):
        if match := BAND.search(name):
            scenes[name[: match.start()]][match[0]] = path / name
    shapes: dict[str, tuple[int, int, int]] = {}
    for ending in set.intersection(*map(set, scenes.values())) if scenes else ():
        with suppress(BadImage):
            shapes[ending] = layout(next(iter(scenes.values()))[ending])[0]
    most = max(shapes.values(), key=list(shapes.values()).count, default=(0, 0, 0))
    chosen = [ending for ending, shape in shapes.items() if shape == most and most[0] == 1]
    return sorted(chosen, key=lambda ending: (len(ending), ending)) if len(chosen) > 1 else []


def look(path: Path) -> dict[str, Any]:
    """The fields of `look.Found` for a file or folder of measured values. UserError where none can be read."""
    bands = [found for found in map(_bands, _some(path)) if found]
    channels = max(set(bands), key=bands.count) if bands else 1
    source: dict[str, Any] = {"kind": "rasters", "path": str(path)}
    if endings := _endings(path):
        source["bands"], channels = endings, len(endings)
    listed = sources.chosen(data_of(source, channels))
    arrays, bad = _values(listed.rows, source, channels)
    if not arrays:
        raise UserError(f"{path}: no image of {len(listed.rows)} can be read ({'; '.join(sorted(set(bad)))})")
    height, width = arrays[0].shape[1:]
    medical = any("subject" in row.attributes for row in listed.rows)
    if not medical and len(listed.rows) < FEW and min(height, width) >= SIDE:
        for tile in TILES:
            source = {**source, "tile": tile, "block": 2}
            listed = sources.chosen(data_of(source, channels))
            if len(listed.rows) >= FEW:
                break
        if len(listed.rows) < OVERLAP:
            source["stride"] = source["tile"] // 4
            listed = sources.chosen(data_of(source, channels))
        arrays, bad = _values(listed.rows, source, channels)
    columns = [
        column for column in ("subject", "block") if len({row.attributes.get(column) for row in listed.rows}) > 2
    ]
    values, notes = values_of(arrays)
    if "stride" in source:
        notes.append(f"Tiles begin {source['stride']} pixels apart within their block: side by side they would be few.")
    if medical:
        notes.append("Of patients' files neither names nor attributes are kept; `window: [40, 400]` shows soft tissue.")
    rows = listed.rows
    together = columns[0] if columns else None
    return {
        "source": source,
        "count": len(rows),
        "keys": [row.key for row in rows],
        "labels": [None for _ in rows],
        "groups": (together, [str(row.attributes.get(together)) for row in rows]) if together else None,
        "sizes": [(array.shape[2], array.shape[1]) for array in arrays],
        "gray": float(channels == 1),
        "looked": len(arrays) + len(bad),
        "problems": Counter(bad),
        "left_out": listed.left_out,
        "notes": notes,
        "channels": channels,
        "values": values,
    }


def values_of(arrays: Sequence[Array]) -> tuple[dict[str, Any], list[str]]:
    """`data.values` that hold all values of some images [C, h, w], and what is to be said of them."""
    low, high = min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)
    whole = all(array.dtype.kind in "biu" or bool((array == np.rint(array)).all()) for array in arrays)
    kinds = [kind for kind in ("uint8", "uint16", "int16") if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max]
    own = [kind for kind in kinds if {kind} == {str(array.dtype) for array in arrays}]  # others' values may be larger
    values = {"dtype": (own or kinds)[0] if whole and kinds else "float32", "percentiles": [0.1, 99.9]}
    return values, [f"Values of {len(arrays)} images that were read go from {low:g} to {high:g}."]


def _values(rows: Sequence[Row], source: dict[str, Any], channels: int) -> tuple[list[Array], list[str]]:
    """Values [C, h, w] of some images, evenly spread, and why others could not be read."""
    data, arrays, bad = data_of(source, channels), [], []
    for row in rows[:: -(-len(rows) // LOOKED)]:
        path, _, number = str(row.location).rpartition("#")
        try:
            found = rasters.opened(Path(path), data).read(int(number))
            if found.dtype.kind not in "biuf":
                raise BadImage("undecodable", "")
            if len(found) != channels or not np.isfinite(found).all():
                raise BadImage("other bands" if len(found) != channels else "not finite", "")
            arrays.append(found)
        except BadImage as error:
            if error.reason != WITHOUT_DATA:  # such tiles are left out
                bad.append(error.reason)
    return arrays, bad


def data_of(source: dict[str, Any], channels: int) -> Data:
    """A section `data` that takes values as they are."""
    values = {"dtype": "float32", "range": [0, 1]}
    return Data.model_validate({"source": source, "channels": channels, "values": values})
