"""Where images come from: folder, table, arrays, digits, synthetic, WebDataset tars. Lists them, digests them.

A source is identified by the digest of its content listing, never by its path. This runs before the pipeline knows
whether there is anything to do, so nothing heavy is imported. Decoding and writing shards is `stages/ingest.py`.
"""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import importlib.util
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import synthetic
from pipeline.data.transforms import FORMATS
from pipeline.errors import UserError
from pipeline.files import digest, read_json, sha256_file, write_json

if TYPE_CHECKING:
    from pipeline.schema.data import Data, FolderSource, TableSource, WebDatasetSource

Array = np.ndarray[Any, np.dtype[Any]]
FORMAT = 1  # raise it when a listing's meaning changes


@dataclass(frozen=True)
class Row:
    """One image of a source: its key, where its bytes are (a path, or a row of an array), and what is known of it."""

    key: str
    location: str | int
    digest: str  # SHA-256 of the file's bytes, or of the array's row
    label: str | None = None
    caption: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """All images of a source in a fixed order, its class names, and what was named but is not there."""

    rows: list[Row]
    classes: list[str]
    missing: list[str]


class Digests:
    """SHA-256 of files, remembered by path, size and mtime, so that a second run reads no image again."""

    def __init__(self, path: Path | None) -> None:
        """`path`: the JSON file that remembers, or None."""
        self._path = path
        self._known: dict[str, list[Any]] = {}
        self._used: dict[str, list[Any]] = {}
        if path is not None and path.exists():
            self._known = read_json(path)

    def of(self, file: str | Path) -> str:
        """SHA-256 (hex) of a file's bytes. Raises FileNotFoundError."""
        name, stat = str(Path(file).absolute()), Path(file).stat()
        known = self._known.get(name)
        if known is None or known[:2] != [stat.st_size, stat.st_mtime_ns]:
            known = [stat.st_size, stat.st_mtime_ns, sha256_file(file)]
        self._used[name] = known
        return str(known[2])

    def save(self) -> None:
        """Keep the digests of the files that were asked for."""
        if self._path is not None and self._used != self._known:
            write_json(self._path, self._used)


def source_fingerprint(data: Data, cache_folder: str | Path | None = None) -> str:
    """SHA-256 (hex) of what the source holds; `cache_folder` remembers file digests between runs."""
    source = data.source
    digests = _digests(source, cache_folder)
    if source.kind == "webdataset":
        tars = [[tar.identity, tar.held_out] for tar in tar_listing(source, digests)]
        content: Any = [tars, tar_classes(source)]
    elif source.kind == "arrays":
        content = [digests.of(_existing(path)) for path in (source.path, source.labels) if path]
    elif source.kind in synthetic.KINDS:
        content = [synthetic.VERSION, source.model_dump(mode="json")]
    else:
        found = listing(source, digests)
        rows = [[row.key, row.digest, row.label, row.caption, row.attributes] for row in found.rows]
        content = [rows, found.classes, found.missing]
    digests.save()
    return digest([FORMAT, source.kind, content])


def open_listing(data: Data, cache_folder: str | Path | None = None) -> Listing:
    """The listing of a source that is no WebDataset, with file digests remembered in `cache_folder`."""
    digests = _digests(data.source, cache_folder)
    found = listing(data.source, digests)
    digests.save()
    return found


def _digests(source: Any, cache_folder: str | Path | None) -> Digests:
    if cache_folder is None or source.kind in ("digits", *synthetic.KINDS):
        return Digests(None)
    name = hashlib.sha256(str(Path(source.path).absolute()).encode()).hexdigest()[:16]
    return Digests(Path(cache_folder) / f"digests-{name}.json")


def listing(source: Any, digests: Digests) -> Listing:
    """List a source that is no WebDataset. Raises UserError where there is nothing to list."""
    if source.kind == "folder":
        found = _list_folder(source, digests)
    elif source.kind == "table":
        found = _list_table(source, digests)
    elif source.kind in synthetic.KINDS:
        found = _list_synthetic(source)
    else:
        found = _list_arrays(source)
    if not found.rows:
        detail = f" ({len(found.missing)} files named are missing, such as {found.missing[0]})" if found.missing else ""
        where = getattr(source, "path", "")
        raise UserError(f"data.source ({source.kind}) {where} holds no images{detail}: check the path")
    return found


def reader(source: Any) -> Callable[[str | int], bytes | Array]:
    """A function from a row's location to the file's bytes, or to an array [h, w] or [h, w, c], uint8 or uint16."""
    if source.kind in ("digits", "arrays"):
        images, _ = read_arrays(source)
        return lambda location: images[int(location)]
    if source.kind in synthetic.KINDS:
        made = synthetic.reader(source)
        return lambda location: made(int(location))
    return lambda location: Path(str(location)).read_bytes()


def class_order(labels: Iterable[str]) -> list[str]:
    """Distinct labels, as numbers where all are whole numbers, else by name."""
    distinct = set(labels)
    if all(re.fullmatch(r"-?\d+", label) for label in distinct):
        return sorted(distinct, key=int)
    return sorted(distinct)


# ---- folders and tables ----------------------------------------------------------------------------------------------


def _existing(path: str) -> Path:
    if not Path(path).exists():
        raise UserError(f"data.source: {path} does not exist (looked from {Path.cwd()}): correct the path")
    return Path(path)


def _list_folder(source: FolderSource, digests: Digests) -> Listing:
    root = _existing(source.path)
    rows = []
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        for name in sorted(files):
            if name.startswith(".") or Path(name).suffix[1:].lower() not in FORMATS:
                continue
            path = Path(folder) / name
            inside = path.relative_to(root)
            label = inside.parent.as_posix() if inside.parent != Path() else None
            rows.append(Row(inside.with_suffix("").as_posix(), str(path.absolute()), digests.of(path), label))
    return Listing(rows, class_order(row.label for row in rows if row.label), [])


def _list_table(source: TableSource, digests: Digests) -> Listing:
    path = _existing(source.path)
    rows, missing = [], []
    for number, record in _records(path):
        for column in (source.image, source.label, source.caption):
            if column and column not in record:
                raise UserError(f"{path}:{number}: no column {column!r}; there are {', '.join(map(str, record))}")
        name = str(record[source.image])
        attributes = {k: v for k, v in record.items() if k not in (source.image, source.label, source.caption)}
        label = _text(record[source.label]) if source.label else None
        caption = _text(record[source.caption]) if source.caption else None
        file = path.parent / name
        if file.is_file():
            key = Path(name).with_suffix("").as_posix()
            rows.append(Row(key, str(file.absolute()), digests.of(file), label, caption, attributes))
        else:
            missing.append(name)
    return Listing(rows, class_order(row.label for row in rows if row.label), missing)


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each row of a .csv or .jsonl file."""
    if path.suffix not in (".csv", ".jsonl"):
        raise UserError(f"data.source: {path} is neither .csv nor .jsonl: convert or rename it")
    try:
        yield from _parsed(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a table in UTF-8 ({error}): convert it") from error


def _parsed(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        if path.suffix == ".csv":
            for record in (table := csv.DictReader(file)):
                if None in record or None in record.values():
                    columns = len(table.fieldnames or [])
                    raise UserError(f"{path}:{table.line_num}: a row of more or fewer than {columns} columns")
                yield table.line_num, record
            return
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not JSON ({error}): one object a line is expected") from error
            if not isinstance(record, dict):
                raise UserError(f"{path}:{number}: expected an object, got {type(record).__name__}")
            yield number, record


def _list_synthetic(source: Any) -> Listing:
    classes, known = synthetic.factors(source)
    options = source.model_dump(mode="json")
    rows = [
        Row(f"{i:08d}", i, digest([synthetic.VERSION, options, i]), one.pop("class"), None, one)
        for i, one in enumerate(known)
    ]
    return Listing(rows, classes, [])


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _list_arrays(source: Any) -> Listing:
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
        with np.load(_existing(path), allow_pickle=False) as file:
            names = list(file)
            arrays = {name: file[name] for name in ("images", "labels") if name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not a readable .npz file ({error}): write or copy it again") from error
    if "images" not in arrays:
        raise UserError(f"{path} has no array `images`, only {', '.join(names)}: save images=..., labels=...")
    return arrays


def read_idx(path: str) -> Array:
    """An array of bytes in the IDX format of MNIST (two zero bytes, type 8, dimensions, sizes as big-endian uint32)."""
    file = _existing(path)
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


# ---- WebDataset tars -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tar:
    """One shard of a WebDataset: a local absolute path or an fsspec address, its size, what identifies its content, its
    split."""

    location: str
    bytes: int
    identity: str
    held_out: bool  # matched by the pattern of validation tars


def is_remote(location: str) -> bool:
    """Whether a location is an address for fsspec (has a scheme) rather than a local path."""
    return "://" in location


def tar_listing(source: WebDatasetSource, digests: Digests) -> list[Tar]:
    """The tars of both patterns, sorted by name. Local tars are identified by SHA-256, remote ones by what the store
    tells without reading them (fsspec's `ukey`: size and ETag or time); their bytes are hashed when they are copied."""
    tars = []
    for pattern, held_out in ((source.path, False), (source.val, True)):
        if pattern is None:
            continue
        found = expand(pattern)
        if not found:
            raise UserError(f"data.source: no file matches {pattern} (looked from {Path.cwd()}): correct the pattern")
        tars += [Tar(location, *_size_identity(location, digests), held_out) for location in found]
    digests.save()
    return tars


def tar_digests(source: WebDatasetSource, cache_folder: str | Path | None) -> list[Tar]:
    """`tar_listing` with digests remembered in `cache_folder`."""
    return tar_listing(source, _digests(source, cache_folder))


def expand(pattern: str) -> list[str]:
    """The files or addresses that a pattern of tars matches, sorted."""
    if not is_remote(pattern):
        return sorted(str(Path(path).absolute()) for path in glob.glob(pattern))  # noqa: PTH207 - absolute patterns too
    import fsspec

    system, path = fsspec.core.url_to_fs(pattern)
    return sorted(system.unstrip_protocol(name) for name in system.glob(path))


def _size_identity(location: str, digests: Digests) -> tuple[int, str]:
    if not is_remote(location):
        return Path(location).stat().st_size, digests.of(location)
    import fsspec

    system, path = fsspec.core.url_to_fs(location)
    size = system.size(path)
    if size is None:
        raise UserError(f"data.source: the store does not tell the size of {location}: copy it to one that does")
    return size, f"{Path(path).name}:{size}:{system.ukey(path)}"


def tar_classes(source: WebDatasetSource) -> list[str] | None:
    """The class names given for tars: `source.classes`, else classes.json beside the first local tar, else None."""
    path = Path(source.classes) if source.classes else None
    if path is None and not is_remote(source.path):
        found = Path(source.path).parent / "classes.json"
        path = found if found.exists() else None
    if path is None:
        return None
    try:
        names = read_json(_existing(str(path)))
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: expected a JSON list of class names")
    return names
