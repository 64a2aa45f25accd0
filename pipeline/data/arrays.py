"""Arrays as sources: .npz, IDX, and the digits of scikit-learn."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.listing import Array, Listing, Row, class_order, existing
from pipeline.errors import UserError

if TYPE_CHECKING:
    pass


def list_arrays(source: Any) -> Listing:
    images, labels = read_arrays(source)
    names = [None] * len(images) if labels is None else [str(int(label)) for label in labels]
    shape = f"{images.dtype}{images.shape[1:]}".encode()
    rows = [
        Row(f"{i:08d}", i, hashlib.sha256(shape + np.ascontiguousarray(images[i]).tobytes()).hexdigest(), name)
        for i, name in enumerate(names)
    ]
    return Listing(rows, class_order(name for name in names if name is not None), [])


def read_arrays(source: Any) -> tuple[Array, Array | None]:
    """Images [n, h, w] or [n, h, w, c], uint8 or uint16, and integer labels [n] or None, of digits, .npz or IDX."""
    if source.kind == "digits":
        return _digits()
    return _arrays(source.path, source.labels)


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
def _arrays(path: str, labels_path: str | None) -> tuple[Array, Array | None]:
    labels: Array | None
    if path.endswith(".npz"):
        arrays = _npz(path)
        images, labels = arrays["images"], arrays.get("labels")
    else:
        images, labels = read_idx(path), read_idx(labels_path) if labels_path else None
    if images.ndim == 4 and images.shape[3] not in (1, 3, 4) and images.shape[1] in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)  # [n, c, h, w] -> [n, h, w, c]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise UserError(f"{path}: images of shape {images.shape}; expected [n, h, w] or [n, h, w, 1, 3 or 4 channels]")
    if images.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path}: images of type {images.dtype}; expected uint8 or uint16: scale and convert them")
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        raise UserError(f"{path}: labels {labels.dtype}{labels.shape}; expected {len(images)} whole numbers")
    return images, labels


def _npz(path: str) -> dict[str, Array]:
    try:
        with np.load(existing(path), allow_pickle=False) as file:
            names = list(file)
            arrays = {name: file[name] for name in ("images", "labels") if name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not a readable .npz file ({error}): write or copy it again") from error
    if "images" not in arrays:
        raise UserError(f"{path} has no array `images`, only {', '.join(names)}: save images=..., labels=...")
    return arrays


def read_idx(path: str) -> Array:
    """An array of bytes in the IDX format of MNIST (two zero bytes, type 8, dimensions, sizes as big-endian uint32)."""
    file = existing(path)
    content = file.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is damaged or truncated ({error}): write or copy it again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise UserError(f"{path} is no IDX file of bytes (it begins with {content[:4].hex(' ')}, expected 00 00 08 ..)")
    dimensions = content[3]
    shape = tuple(np.frombuffer(content, ">u4", dimensions, 4).tolist())
    if len(content) != 4 + 4 * dimensions + int(np.prod(shape)):
        raise UserError(f"{path} is truncated: {len(content)} bytes do not hold an array of {shape}")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
