"""Arrays as sources: .npz, IDX, and the digits of scikit-learn."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import math
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import bounded
from pipeline.data.array_names import Parts, find_parts
from pipeline.data.labels import Labels, class_names
from pipeline.data.listing import Array, Digests, Listing, Row, class_order, existing
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.schema.data import ArraysSource

ROWS = 1000  # images whose values are converted at once
# What zipfile and numpy raise on files that are damaged or made to harm: RuntimeError of encrypted members,
# NotImplementedError (one of these) of unknown compression, TokenError of a broken header, MemoryError of a false one.
TROUBLE = (
    ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, tokenize.TokenError, MemoryError
)  # fmt: skip


@dataclass(frozen=True)
class Arrays:
    """images: [n, h, w] or [n, h, w, c], uint8 or uint16. labels: [n] or None, numbers or text. splits: the rows of
    each split, in order, where the source has its own. notes: what was found, each in a line."""

    images: Array
    labels: Array | None
    splits: dict[str, range] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def list_arrays(source: Any) -> Listing:
    found = open_arrays(source)
    known = class_names(getattr(source, "class_names", None))
    labels = Labels(getattr(source, "labels_key", None) or "labels", names=known)
    names: list[str | None] = [None] * len(found.images)
    if found.labels is not None and (known or found.labels.dtype.kind not in "iu"):
        names = [labels(value, f"{source.path}, image {i}") for i, value in enumerate(found.labels.tolist())]
    elif found.labels is not None:
        names = [str(int(label)) for label in found.labels]
    shape = f"{found.images.dtype}{found.images.shape[1:]}".encode()
    keys = [f"{i:08d}" for i in range(len(found.images))]
    attributes: list[dict[str, Any]] = [{} for _ in keys]
    for split, rows in found.splits.items():
        for place, i in enumerate(rows):
            keys[i], attributes[i] = f"{split}/{place:08d}", {"split": split}
    rows_of = [
        Row(
            keys[i], i, hashlib.sha256(shape + np.ascontiguousarray(found.images[i]).tobytes()).hexdigest(), name,
            None, attributes[i],
        )
        for i, name in enumerate(names)
    ]  # fmt: skip
    classes = known if known is not None else class_order(name for name in names if name is not None)
    return Listing(rows_of, classes, [], notes=[*found.notes, *labels.notes()])


def identity(source: ArraysSource, digests: Digests) -> list[Any]:
    """What decides on the images and labels: the files' digests, and the keys that are set."""
    files: list[Any] = [digests.of(existing(path)) for path in (source.path, source.labels) if path]
    names = class_names(source.class_names)
    keys = [source.images_key, source.labels_key, names, source.range]
    return [*files, keys] if any(key is not None for key in keys) else files


def read_arrays(source: Any) -> tuple[Array, Array | None]:
    """Images [n, h, w] or [n, h, w, c], uint8 or uint16, and labels [n] or None, of digits, .npz or IDX."""
    found = open_arrays(source)
    return found.images, found.labels


def open_arrays(source: Any) -> Arrays:
    """The arrays of digits, .npz or IDX. UserError, in a line, for what is no array of images."""
    return Arrays(*_digits()) if source.kind == "digits" else _arrays(source)


@lru_cache(maxsize=1)
def _digits() -> tuple[Array, Array]:
    """scikit-learn's digits, read from its package without importing it: 8x8 counts of 0 to 16, scaled to 0 to 255."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise UserError("data.source digits needs scikit-learn: pip install scikit-learn")
    with gzip.open(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)  # [1797, 64 + 1]
    images = np.rint(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return images, table[:, 64]


@lru_cache(maxsize=1)
def _arrays(source: ArraysSource) -> Arrays:
    path = source.path
    if path.endswith(".npz"):
        return _of_npz(source)
    if source.images_key or source.labels_key:
        raise UserError(f"`data.source.images_key` and `labels_key` name arrays of an .npz file; {path} is none")
    labels, notes = _labels(read_idx(source.labels), path) if source.labels else (None, [])
    return _checked(source, Arrays(_images(read_idx(path), source, path), labels, {}, tuple(notes)))


def _of_npz(source: ArraysSource) -> Arrays:
    """One array of images, or those of each split behind each other."""
    path, notes = source.path, []
    with open_npz(path) as file:
        parts = find_parts(path, list(file), source.images_key, source.labels_key)
        images = {
            split: _images(read_array(file, name, path), source, f"{path}, {name}") for split, name in parts.images
        }
        labels = {split: _labels(read_array(file, name, path), f"{path}, {name}") for split, name in parts.labels}
        notes = [*parts.notes, *dict.fromkeys(line for _, lines in labels.values() for line in lines)]
    if not parts.splits:
        (only,) = images.values()
        found = labels.get("")
        return _checked(source, Arrays(only, found[0] if found else None, {}, tuple(notes)))
    ends = np.cumsum([0] + [len(array) for array in images.values()])
    splits = {split: range(int(ends[i]), int(ends[i + 1])) for i, split in enumerate(images)}
    for split in set(images) & set(labels):
        _checked(source, Arrays(images[split], labels[split][0]))
    known = np.concatenate([labels[split][0] for split in images]) if set(images) == set(labels) else None
    if len({array.shape[1:] for array in images.values()}) > 1:
        raise UserError(f"{path}: {_sizes(parts, images)} are of unlike shapes; name one by `data.source.images_key`")
    return _checked(source, Arrays(np.concatenate(list(images.values())), known, splits, tuple(notes)))


def _sizes(parts: Parts, images: dict[str, Array]) -> str:
    return ", ".join(f"{name} {images[split].shape[1:]}" for split, name in parts.images)


def open_npz(path: str) -> Any:
    try:
        if not zipfile.is_zipfile(existing(path)):  # numpy would say how to load it as a pickle
            raise ValueError("it is no zip archive")
        return np.load(path, allow_pickle=False)
    except TROUBLE as error:
        raise _damaged(path, error) from error


def read_array(file: Any, name: str, path: str) -> Array:
    try:
        array: Array = file[name]
    except TROUBLE as error:
        raise _damaged(path, error) from error
    if not isinstance(array, np.ndarray):  # numpy hands on the bytes of a member that is no array
        raise _damaged(path, ValueError(f"{name} is no array"))
    return array


def _damaged(path: str, error: Exception) -> UserError:
    return UserError(f"{path} is not a readable .npz file ({error}): write or copy it again")


def _checked(source: ArraysSource, found: Arrays) -> Arrays:
    count = len(found.images)
    if found.labels is not None and found.labels.shape != (count,):
        raise UserError(
            f"{source.path}: labels {found.labels.dtype}{found.labels.shape}; expected {count} whole numbers or names"
        )
    return found


# ---- images ----------------------------------------------------------------------------------------------------------


def _images(images: Array, source: ArraysSource, shown: str) -> Array:
    """[n, h, w] or [n, h, w, c], uint8 or uint16, of what the file holds."""
    if images.ndim == 4 and images.shape[3] not in (1, 3, 4) and images.shape[1] in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)  # [n, c, h, w] -> [n, h, w, c]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise UserError(f"{shown}: images of shape {images.shape}; expected [n, h, w] or [n, h, w, 1, 3 or 4 channels]")
    if images.dtype == np.bool_ and source.range is None:
        return np.where(images, np.uint8(255), np.uint8(0))
    if images.dtype in (np.uint8, np.uint16) and source.range is None:
        return images
    if images.dtype.kind not in "biuf" or not images.size:
        raise UserError(f"{shown}: images of type {images.dtype}{images.shape}; expected numbers: convert them")
    low, high = float(images.min()), float(images.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{shown}: some values are not finite (NaN or infinity): mend the images")
    if source.range is None:
        raise UserError(
            f"{shown}: images of type {images.dtype}; expected uint8 or uint16, or what black and white are: values go "
            f"from {low:g} to {high:g}, so write `data.source.range: {guess_range(low, high)}`"
        )
    return _scaled(images, source.range, low, high, shown)


def guess_range(low: float, high: float) -> list[float]:
    """What black and white may be, for values from `low` to `high`."""
    for black, white in ((0, 1), (-1, 1), (0, 255), (-128, 127), (0, 65535)):
        if black <= low and high <= white:
            return [black, white]
    return [float(f"{low:g}"), float(f"{high:g}")]


def _scaled(images: Array, ends: tuple[float, float], low: float, high: float, shown: str) -> Array:
    """Values of a stated range to uint8, rounded."""
    black, white = ends
    slack = 1e-4 * (white - black)
    if low < black - slack or high > white + slack:
        raise UserError(
            f"{shown}: values go from {low:g} to {high:g}, outside of `data.source.range: [{black:g}, {white:g}]`; "
            "correct it"
        )
    out = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), ROWS):
        part = (images[start : start + ROWS].astype(np.float64) - black) * (255 / (white - black))
        out[start : start + ROWS] = np.rint(part.clip(0, 255))
    return out


# ---- labels ----------------------------------------------------------------------------------------------------------


def _labels(labels: Array, shown: str) -> tuple[Array, list[str]]:
    """Labels [n] of [n], [n, 1] or one-hot [n, k], and what was done, in words."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "biuf":
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()):
            raise UserError(
                f"{shown}: labels of shape {labels.shape} are not one-hot (each row one 1, else 0), and an image has "
                "one class: name other labels by `data.source.labels_key`"
            )
        return labels.argmax(1), [f"{shown}: one-hot labels of {labels.shape[1]} classes, numbered from 0"]
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iubUf":
        raise UserError(f"{shown}: labels of type {labels.dtype}; expected whole numbers or names")
    return labels, []


# ---- IDX -------------------------------------------------------------------------------------------------------------


def read_idx(path: str) -> Array:
    """An array of bytes in the IDX format of MNIST (two zero bytes, type 8, dimensions, sizes as big-endian uint32)."""
    file = existing(path)
    with open(file, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    with gzip.open(file) if zipped else open(file, "rb") as opened:
        try:
            head = opened.read(4)
            if head[:3] != b"\0\0\x08" or len(head) < 4:
                raise UserError(
                    f"{path} is no IDX file of bytes (it begins with {head.hex(' ')}, expected 00 00 08 ..)"
                )
            sizes = opened.read(4 * head[3])
            shape = tuple(np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4").tolist())
            count = math.prod(shape) if len(shape) == head[3] else -1
            content = (
                opened.read(count + 1)
                if 0 <= count <= file.stat().st_size * (bounded.DEFLATED if zipped else 1)
                else b""
            )  # as much as is said
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is damaged or truncated ({error}): write or copy it again") from error
    if len(content) != count:
        raise UserError(f"{path} is truncated, or longer than it says: it does not hold an array of {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape)
