"""NIfTI files: slices of volumes, by their orientation in space, in the unit that slope and intercept give.

A slice is turned as radiologists look at it: axial and coronal ones with the patient's right at the left, axial ones
with the front above, others with the head above, sagittal ones with the front at the left. Of the header nothing but
shape, type, affine and scaling is used.
"""

from __future__ import annotations

import gzip
import math
import struct
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import bounded
from pipeline.data.raster_files import Array, Held, reading, small
from pipeline.data.transforms import BadImage

if TYPE_CHECKING:
    from pipeline.schema.data import Data

AXES = {"sagittal": (0, (2, 1)), "coronal": (1, (2, 0)), "axial": (2, (1, 0))}  # across; down and along the slice


def open_nifti(path: Path, data: Data) -> Held:
    """The slices of a volume [x, y, z], of several [x, y, z, t] one after the other, or of t bands."""
    import nibabel
    from nibabel.orientations import io_orientation

    with reading("no NIfTI file"):
        _check_head(path)
        volume = nibabel.load(path)
        proxy, affine = volume.dataobj, volume.affine
        shape, kind = tuple(int(side) for side in proxy.shape), proxy.dtype
        turns = io_orientation(affine)  # of each voxel axis: the axis of space (R, A, S), and its direction
    if len(shape) not in (3, 4) or kind.kind not in "biuf" or np.isnan(turns).any():
        raise BadImage(
            "undecodable", f"a volume of shape {list(shape)} and type {kind.kind}; expected three axes of numbers"
        )
    across, plane = AXES[getattr(data.source, "plane", "axial")]
    voxel = {int(space): axis for axis, (space, _) in enumerate(turns[:3])}  # axis of space -> of the array
    slices, times = shape[voxel[across]], shape[3] if len(shape) == 4 else 1
    height, width = (shape[voxel[axis]] for axis in plane)
    small(height, width, math.prod(shape), data)
    if (
        not 0
        < math.prod(shape) * kind.itemsize
        <= path.stat().st_size * (bounded.DEFLATED if path.suffix.lower() == ".gz" else 1)
    ):
        raise BadImage("truncated", f"a volume of {list(shape)}, more than the file can hold")
    banded = times == data.channels > 1
    stored = cache(proxy.get_unscaled)  # of a .nii.gz a slice would be unpacked from its beginning each time
    most = math.prod(shape) * kind.itemsize + 2 * bounded.HARMLESS
    whole = cache(lambda: path.suffix.lower() != ".gz" or bounded.gunzips(path, most))

    def read(number: int) -> Array:
        time, place = divmod(number, slices)
        where: list[int | slice] = [slice(None)] * 3
        where[voxel[across]] = place if turns[voxel[across]][1] > 0 else slices - 1 - place
        if len(shape) == 4:
            where.append(slice(None) if banded else time)
        if not whole():  # nibabel reads up to the last value, and the checksum stands behind it
            raise BadImage("undecodable", "the .gz file is damaged or cut off: copy it again")
        with reading("its values cannot be read"):
            values = np.asarray(stored()[tuple(where)])
        if (proxy.slope, proxy.inter) != (1, 0):  # nibabel has 1 and 0 for a slope of 0, NaN or infinity
            values = values.astype(np.float64) * proxy.slope + proxy.inter
        values = np.moveaxis(values, -1, 0) if banded else values[None]
        rows, columns = (voxel[axis] for axis in plane)
        if rows > columns:
            values = values.swapaxes(1, 2)
        # Space counts towards right, front and head: what is above or at the left comes last.
        down, along = (-1 if turns[axis][1] > 0 else 1 for axis in (rows, columns))
        return values[:, ::down, ::along]

    return Held(slices if banded else slices * times, read, slices=slices)


def _check_head(path: Path) -> None:
    """BadImage for a NIfTI file that is in two parts, or whose values begin where no header's extensions are so long:
    nibabel reads these whole."""
    opened: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rb") as file:
        head = file.read(540)
    for order in "<>":
        if len(head) >= 348 and struct.unpack(f"{order}i", head[:4]) == (348,) and head[344:348] == b"n+1\0":
            start = struct.unpack(f"{order}f", head[108:112])[0]
        elif len(head) >= 540 and struct.unpack(f"{order}i", head[:4]) == (540,) and head[4:8] == b"n+2\0":
            start = struct.unpack(f"{order}q", head[168:176])[0]
        else:
            continue
        if not 0 <= start <= bounded.HARMLESS:
            raise BadImage("oversized", f"a header of {start:g} bytes, {bounded.HARMLESS:,} are read at most")
        return
    raise BadImage("undecodable", "no NIfTI file of one part")
