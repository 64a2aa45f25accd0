"""Files of measured values for tests: how they are written, listed and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.data import rasters, sources
from pipeline.data.transforms import BadImage
from pipeline.schema.data import Data

RANDOM = np.random.default_rng(0)


def noise(*shape, dtype="uint16"):
    """Random values over all of a type's range; of floats normal numbers."""
    if np.dtype(dtype).kind == "f":
        return RANDOM.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return RANDOM.integers(limits.min, limits.max + 1, shape).astype(dtype)


def data(path, dtype="uint16", channels=1, size=16, **more):
    source = {"kind": "rasters", "path": str(path), **{k: more.pop(k) for k in list(more) if k in SOURCE}}
    values = more.pop("values", {"range": [0, 1]})
    return Data.model_validate(
        {"source": source, "size": size, "channels": channels, "values": {"dtype": dtype, **values}, **more}
    )


SOURCE = ("tile", "block", "plane", "rescale", "classes", "bands", "stride")


def read(path, **how) -> list[np.ndarray]:
    """The values [C, h, w] of all images of a file or folder, in the order of the listing."""
    one = data(path, **how)
    load = rasters.reader(one)
    return [load(row) for row in sources.open_listing(one).rows]


def reason(path, **how) -> str:
    """Why the one image of a file cannot be used."""
    with pytest.raises(BadImage) as caught:
        read(path, **how)
    return f"{caught.value.reason}: {caught.value.detail}"


def dicom(path: Path, pixels, **attributes):
    """Write a DICOM file: pixels [h, w], [frames, h, w] or [h, w, 3], as they are stored."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    file = pydicom.Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    file.PatientID, file.PatientName = "1", "A^B"
    if pixels is not None:
        colour = pixels.ndim == 3 and pixels.shape[-1] == 3
        file.Rows, file.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
        file.SamplesPerPixel, file.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
        if colour:
            file.PlanarConfiguration = 0
        elif pixels.ndim == 3:
            file.NumberOfFrames = len(pixels)
        file.BitsAllocated = file.BitsStored = pixels.dtype.itemsize * 8
        file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(pixels.dtype.kind == "i")
        file.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return file


def nifti(path: Path, voxels, affine=None, slope=None, inter=None):
    """Write a NIfTI file; slope and inter are put into its header as they are, NaN too."""
    import nibabel

    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    if slope is not None:
        content = bytearray(path.read_bytes())
        content[112:116], content[116:120] = np.float32(slope).tobytes(), np.float32(inter or 0).tobytes()
        path.write_bytes(content)
