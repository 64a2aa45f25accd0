"""`data.source.kind: rasters`: which files of measured values there are, what their images are called, and a reader.

Medical files (DICOM, NIfTI) name people: in attributes, in the names of files and folders. Of these nothing is kept.
Their images are called `SUBJECT/FILE/NUMBER`, where SUBJECT and FILE are the first digits of digests of whole files,
which nobody can guess as one can a patient's number; so are other files beside them. Where there are none, files
are called by their path, as in folders of images.
Files are read by `raster_files.py`, `dicom.py` and `nifti.py`.
"""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import dicom, nifti, raster_files, scenes
from pipeline.data.folders import files_under
from pipeline.data.listing import Digests, LeftOut, Listing, Row, class_order, existing, keys_of, plain
from pipeline.data.raster_files import Array, Held
from pipeline.data.transforms import BadImage
from pipeline.errors import UserError, many
from pipeline.files import digest, sha256_file

if TYPE_CHECKING:
    from pipeline.schema.data import Data

KINDS = {"tif": "tiff", "tiff": "tiff", "png": "png", "npy": "npy", "dcm": "dicom", "nii": "nifti", "nii.gz": "nifti"}
MEDICAL = {"dicom": "pydicom", "nifti": "nibabel"}  # the kinds of files that name people, and the package of each
UNNAMED = "(not named: files of patients)"
OPEN: dict[str, Callable[[Path, Data], Held]] = {
    "tiff": raster_files.open_tiff,
    "png": raster_files.open_png,
    "npy": raster_files.open_npy,
    "dicom": dicom.open_dicom,
    "nifti": nifti.open_nifti,
}
VERSION = 1  # raised when the same files give other values
DIGITS = 12  # of digests in keys


def kind_of(path: Path) -> str | None:
    """Which of `OPEN` reads a file: by its name, and without a known ending by DICOM's mark."""
    name = path.name.lower()
    ending = "nii.gz" if name.endswith(".nii.gz") else path.suffix[1:].lower()
    return KINDS.get(ending) or ("dicom" if dicom.is_dicom(path) else None)


@dataclass
class _File:
    path: Path
    name: Path  # inside of the source
    kind: str
    digest: str
    count: int = 1  # one that cannot be opened is one image, which goes to quarantine
    subject: str | None = None
    blocks: tuple[str, ...] = field(default_factory=tuple)
    slices: int | None = None


def list_rasters(data: Data, digests: Digests) -> Listing:
    """The images of all files, by opening each; whatever cannot be opened is one image, for quarantine."""
    source: Any = data.source
    root = existing(source.path)
    found, left_out = files_under(root, lambda path: kind_of(path) is not None)
    private = any(kind_of(root / name if root.is_dir() else root) in MEDICAL for name in found)
    if source.bands:
        if private:
            raise UserError("data.source.bands: are of TIFF, PNG and .npy files; leave them out for DICOM and NIfTI")
        found = scenes.grouped(found, source.bands, left_out)
    if not digests.reads:  # names stand in no key, so that digests are needed always
        digests = Digests(None, private=True)
    files = [
        _File(root / name if root.is_dir() else root, name, str(kind_of(root / name if root.is_dir() else root)), "")
        for name in found
    ]
    _packages(files)
    seen: set[str] = set()
    kept: list[_File] = []
    for file in files:
        try:
            file.digest = _digest(file.path, source, digests.of)
        except OSError as error:
            raise UserError(f"data.source: a file of {source.path} cannot be read: {error.strerror}") from None
        if file.digest in seen and private:
            left_out.add("files with the bytes of another one", UNNAMED)
            continue
        seen.add(file.digest)
        try:
            held = opened(file.path, data)
            file.count, file.subject, file.blocks, file.slices = held.count, held.subject, held.blocks, held.slices
            if held.others:
                what = "images of TIFF files, of other sizes or types than their first"
                left_out.add(what, str(file.name), held.others)
        except BadImage:
            pass
        kept.append(file)
    if private:
        left_out = LeftOut({reason: (count, UNNAMED) for reason, (count, _) in left_out.json().items()})
    rows = [row for file, key, subject in _named(kept, source) for row in _rows(file, key, subject, source)]
    return Listing(rows, class_order(row.label for row in rows if row.label), [], left_out)


def opened(path: Path, data: Data) -> Held:
    """What a file holds, or with `data.source.bands` the scene whose first band it has. Raises BadImage, and UserError
    for a scene of unlike bands."""

    def file(path: Path, data: Data) -> Held:
        return OPEN[str(kind_of(path))](path, data)

    return scenes.opened(path, data, file) if data.source.bands else file(path, data)  # type: ignore[union-attr]


def _digest(path: Path, source: Any, of: Callable[[Any], str]) -> str:
    return digest([of(file) for file in scenes.files_of(path, source.bands)]) if source.bands else of(path)


def _packages(files: list[_File]) -> None:
    for kind, package in MEDICAL.items():
        count = sum(file.kind == kind for file in files)
        if count and importlib.util.find_spec(package) is None:
            raise UserError(
                f"data.source: {many(count, f'{kind.upper()} file')}: give the package {package} (the extra `medical`)"
            )


def _named(files: list[_File], source: Any) -> list[tuple[_File, str, str | None]]:
    """Each file with the key of its images and, beside files of patients, the pseudonym of its subject, in order of
    key."""
    if not any(file.kind in MEDICAL for file in files):
        names = [scenes.name_of(file.name, source.bands) if source.bands else file.name.as_posix() for file in files]
        keys = keys_of(names)
        return sorted(((file, key, None) for file, key in zip(files, keys, strict=True)), key=lambda one: one[1])
    whose: dict[str, list[str]] = defaultdict(list)
    for file in files:
        whose[_subject(file)].append(file.digest)
    subjects = [min(whose[_subject(file)])[:DIGITS] for file in files]
    named = [
        (file, f"{subject}/{file.digest[:DIGITS]}", subject) for file, subject in zip(files, subjects, strict=True)
    ]
    return sorted(named, key=lambda one: one[1])


def _subject(file: _File) -> str:
    """What tells whether two files are of one subject: what DICOM says, `sub-NAME` in a path as BIDS has it, else the
    file."""
    bids = re.findall(r"sub-[A-Za-z0-9]+", file.name.as_posix())
    return file.subject or (bids[0] if bids else file.digest)


def _rows(file: _File, key: str, subject: str | None, source: Any) -> list[Row]:
    label = plain(file.name.parent.as_posix()) if source.classes and file.name.parent != Path() else None
    rows, slices = [], file.slices or file.count
    for number in range(file.count):
        attributes: dict[str, Any] = {} if subject is None else {"subject": subject}
        if file.blocks:
            attributes["block"] = f"{key}/{file.blocks[number]}"
        elif file.count > 1 and subject is not None:
            place = number % slices  # of the slice in its volume, whichever time that is of
            attributes["place"] = round(place / max(1, slices - 1), 6)  # 0 to 1
            attributes["block"] = f"{key}/{place // source.block}"
        name = key if file.count == 1 else f"{key}/{number:05d}"
        known, together = digest_of(file.digest, number, source), None if source.stride is None else attributes["block"]
        rows.append(Row(name, f"{file.path}#{number}", known, label, None, attributes, together))
    return rows


def digest_of(file: str, number: int, source: Any) -> str:
    """What identifies an image: the digest of its file, its number in it, and how it is cut out."""
    how = [VERSION, source.plane, source.tile, source.block, source.rescale]
    return digest([file, number, how if source.stride is None else [*how, source.stride]])


def reader(data: Data) -> Callable[[Row], Array]:
    """A function from a row to its values [C, h, w] as `data.values.dtype` has them. It raises BadImage, and UserError
    for a file that is another one than was listed."""

    @lru_cache(maxsize=2)
    def known(path: str) -> tuple[str, Held]:
        return _digest(Path(path), data.source, sha256_file), opened(Path(path), data)

    def read(row: Row) -> Array:
        path, _, number = str(row.location).rpartition("#")
        try:
            found, held = known(path)
        except OSError:
            raise BadImage("missing", "the file cannot be read any more") from None
        if digest_of(found, int(number), data.source) != row.digest:
            raise UserError(f"data.source: the file of {row.key} changed while ingest ran: run it again")
        return raster_files.fitting(held.read(int(number)), data)

    return read
