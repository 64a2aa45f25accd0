"""DICOM files: their frames in the unit that they state. Nothing of a file is kept but its pixels, in their unit.

What pydicom raises and warns of may hold values of a patient's attributes: only its type is handed on.
Values are those of the modality (Hounsfield units of a CT): by a LUT, by slope and intercept of the file or of the
frame, or by the dose's scale. MONOCHROME1 says that small values are shown white: it is turned around where the values
have no unit of their own, and left where they have.
"""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import bounded
from pipeline.data.raster_files import Array, Held, reading, small
from pipeline.data.transforms import BadImage

if TYPE_CHECKING:
    from pipeline.schema.data import Data

DEFLATED = "1.2.840.10008.1.2.1.99"  # Deflated Explicit VR Little Endian: all behind the file's own head
WHOM = ("PatientID", "PatientName", "StudyInstanceUID")  # the first that is there says which files are of one subject


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark, whatever it is called."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def open_dicom(path: Path, data: Data) -> Held:
    """The frames of a DICOM file. BadImage for one that holds none."""
    import pydicom

    with reading("no DICOM file"):
        _check_deflated(path, data)
        head = pydicom.dcmread(path, stop_before_pixels=True)
        subject = next((f"{name} {head[name].value}" for name in WHOM if name in head and head[name].value), None)
        count, rows, columns = int(head.get("NumberOfFrames") or 1), head.get("Rows"), head.get("Columns")
    if not rows or not columns:
        raise BadImage("no pixels", "a DICOM file without an image")
    small(int(rows), int(columns), count * int(rows) * int(columns), data)
    if not 0 < count <= path.stat().st_size:  # a frame takes a byte at least
        raise BadImage("truncated", f"{count:,} frames are told of, more than the file can hold")

    @cache
    def whole() -> Any:
        with reading("no DICOM file"):
            return pydicom.dcmread(path)

    def read(frame: int) -> Array:
        file = whole()
        if not any(name in file for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise BadImage("no pixels", "a DICOM file without an image")
        with reading("its pixels cannot be read"):
            return frame_of(file, frame, getattr(data.source, "rescale", True))

    return Held(count, read, subject)


def _check_deflated(path: Path, data: Data) -> None:
    """BadImage for a deflated DICOM file of more than 8 bytes for each pixel of `data.max_pixels`. pydicom unpacks all
    of such a file before its header can be read."""
    from pydicom import filereader

    with open(path, "rb") as file:
        filereader.read_preamble(file, force=False)
        if filereader._read_file_meta_info(file).get("TransferSyntaxUID") != DEFLATED:
            return
        most = 8 * data.max_pixels + bounded.HARMLESS
        if bounded.inflates_over(file.read(), most, -zlib.MAX_WBITS):
            raise BadImage("oversized", f"a deflated file that becomes over {most:,} bytes (8 by data.max_pixels)")


def frame_of(file: Any, frame: int, rescale: bool) -> Array:
    """Values [C, h, w] of a frame. pydicom gives YBR as RGB, while the file's attribute says YBR still."""
    from pydicom.pixels import get_decoder
    from pydicom.pixels.processing import apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    if "PALETTE" in (interpretation := str(file.get("PhotometricInterpretation", ""))):
        raise BadImage("undecodable", "a palette: its numbers are no measured values")
    syntax = file.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and not get_decoder(syntax).is_available:
        which = "no package here unpacks it; the extra `medical` brings gdcm, pydicom's table of decoders names others"
        raise BadImage("undecodable", f"compressed as {syntax.name}: {which}")
    values: Array = pixel_array(file, index=frame)
    values = values.astype(values.dtype.newbyteorder("="))
    if values.ndim == 3:
        return values.transpose(2, 0, 1)
    slope, intercept = rescaling(file, frame)
    if interpretation == "MONOCHROME1" and (slope, intercept) == (1, 0) and "ModalityLUTSequence" not in file:
        top = (1 << int(file.BitsStored)) - 1 if values.dtype.kind == "u" else -1  # lowest + highest that can be stored
        values = top - values.astype(np.int64)
    if not rescale:
        return values[None]
    if slope == 0:
        raise BadImage("undecodable", "a slope of 0: all values would be one; `data.source.rescale: false` reads them")
    if "ModalityLUTSequence" in file:
        return np.asarray(apply_modality_lut(values, file))[None]
    if slope == int(slope) and intercept == int(intercept) and values.dtype.kind in "iu":
        return values[None].astype(np.int64) * int(slope) + int(intercept)
    return values[None].astype(np.float64) * slope + intercept


def rescaling(file: Any, frame: int) -> tuple[float, float]:
    """Slope and intercept of a frame: its own, those of all frames, the file's, a dose's scale; else 1 and 0."""
    several = file.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*several[frame : frame + 1], *(file.get("SharedFunctionalGroupsSequence") or [])[:1]]
    for place in [*(group["PixelValueTransformationSequence"][0] for group in groups
                    if group.get("PixelValueTransformationSequence")), file]:  # fmt: skip
        if place.get("RescaleSlope") is not None or place.get("RescaleIntercept") is not None:
            slope, intercept = place.get("RescaleSlope"), place.get("RescaleIntercept")
            return float(1 if slope is None else slope), float(0 if intercept is None else intercept)
    return float(file.get("DoseGridScaling") or 1), 0.0
