"""Latent shards: tars of NPY members that are read as slices of a memory map, many samples at a time.

A member triple holds up to 1,024 samples: `NNNNN.moments.npy` [n, v, 2C, *sides] float16 (v views of each image, mean
and log-variance as the encoder gave them; one, two or three sides), `NNNNN.label.npy` [n] int64, `NNNNN.key.npy` [n]
bytes. Where latents are of unequal length, their moments begin at place 0 of sides that hold all, and a fourth member
`NNNNN.length.npy` [n, sides] int64 says how many places of each side are there. Equal input gives equal bytes. What
moments mean is the business of `pipeline/data/latents.py`.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.data import shards
from pipeline.data.index import OPEN, Open, map_file
from pipeline.errors import UserError
from pipeline.files import atomic_path

Array = np.ndarray[Any, np.dtype[Any]]
MEMBER = 1024  # samples a member at most: a member's header is then under a thousandth of its data
AGAIN = "remove it and encode it again"


def write(
    path: str | Path,
    moments: Array,
    labels: Array,
    keys: Sequence[str],
    member: int = MEMBER,
    lengths: Array | None = None,
) -> None:
    """Write one shard, whole or not at all: moments [n, v, 2C, *sides] float16, labels [n] integers, n keys; lengths
    [n, sides] integers, the places along each side that are there (default: all)."""
    sides = moments.shape[3:]
    if not 1 <= len(sides) <= 3 or moments.dtype != np.float16 or not len(moments) == len(labels) == len(keys):
        raise ValueError(f"moments {moments.dtype}{moments.shape}, {len(labels)} labels, {len(keys)} keys do not fit")
    if lengths is not None and (
        lengths.shape != (len(moments), len(sides)) or (lengths < 1).any() or (lengths > np.array(sides)).any()
    ):
        raise ValueError(f"lengths {lengths.shape}: expected for each latent 1 to {list(sides)} places")
    extra = () if lengths is None else (("length", lengths.astype("<i8")),)
    key_array = np.array([key.encode() for key in keys]) if len(keys) else np.empty(0, "S1")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        tar = shards.TarWriter(file)
        for number, start in enumerate(range(0, len(moments), member)):
            part = slice(start, start + member)
            for name, array in (("moments", moments), ("label", labels.astype("<i8")), ("key", key_array), *extra):
                values = np.ascontiguousarray(array[part])
                tar.add(f"{number:05d}.{name}.npy", _npy_header(values), values.tobytes())
        tar.close()


def _npy_header(array: Array) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue()


class Part(NamedTuple):
    """One array in a shard's tar."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int  # of the array's first byte in the tar


@dataclass(frozen=True)
class Shard:
    """The arrays of one shard, member by member."""

    path: Path
    moments: list[Part]
    labels: list[Part]
    keys: list[Part]
    lengths: list[Part]  # empty where all latents are of one

    @property
    def count(self) -> int:
        return sum(part.shape[0] for part in self.moments)


def read_shard(path: str | Path) -> Shard:
    """Where a shard's arrays lie. Raises UserError, naming shard and member, for what is no latent shard."""
    path = Path(path)
    parts: dict[str, list[Part]] = {"moments": [], "label": [], "key": [], "length": []}
    members = shards.scan(path)
    with open(path, "rb") as file:
        for member in members:
            _, extension = shards.key_and_extension(member.name)
            kind = extension.removesuffix(".npy")
            if kind not in parts:
                raise UserError(f"latent shard {path}: unexpected member {member.name}: {AGAIN}")
            file.seek(member.offset)
            try:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError("NPY version is not 1.0")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            except ValueError as error:
                raise UserError(f"latent shard {path}: member {member.name} is damaged ({error}): {AGAIN}") from error
            size = int(np.prod(shape)) * dtype.itemsize
            if fortran or file.tell() + size != member.offset + member.length:
                raise UserError(f"latent shard {path}: member {member.name} has not the size of its header: {AGAIN}")
            parts[kind].append(Part(shape, dtype, file.tell()))
    counts = {kind: [part.shape[0] for part in found] for kind, found in parts.items()}
    if not counts["moments"] == counts["label"] == counts["key"] or counts["length"] not in ([], counts["moments"]):
        raise UserError(f"latent shard {path}: moments, labels and keys differ in number: {AGAIN}")
    return Shard(path, parts["moments"], parts["label"], parts["key"], parts["length"])


def places(lengths: Array, sides: Sequence[int]) -> Array:
    """bool [n, *sides]: the places within lengths [n, sides] of each latent."""
    there: Array = np.ones((len(lengths), *sides), bool)
    for axis, side in enumerate(sides):
        around = [1] * axis + [side] + [1] * (len(sides) - axis - 1)
        there &= (np.arange(side) < lengths[:, axis : axis + 1]).reshape(len(lengths), *around)
    return there


class LatentIndex:
    """The latents of one split, numbered through its shards in the order of their images."""

    def __init__(self, found: Sequence[Shard], limit: int = OPEN) -> None:
        self._shards = list(found)
        self.counts: Array = np.array([shard.count for shard in found], np.int64)  # samples a shard
        # A row a member: where its samples end in the whole numbering, its shard, its place in the shard.
        sizes = [part.shape[0] for shard in found for part in shard.moments]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._starts = self._ends - np.array(sizes, np.int64)
        self._places = [(s, p) for s, shard in enumerate(found) for p in range(len(shard.moments))]
        shapes = {part.shape[1:] for shard in found for part in shard.moments}
        if len(shapes) > 1:
            raise UserError(f"latent shards in {found[0].path.parent} have different shapes {sorted(shapes)}: {AGAIN}")
        if len({bool(shard.lengths) for shard in found if shard.count}) > 1:
            raise UserError(f"latent shards in {found[0].path.parent}: not all say how long latents are: {AGAIN}")
        self.views, *shape = shapes.pop() if shapes else (0, 0, 0, 0)
        self.shape: tuple[int, ...] = tuple(shape)  # 2C, *sides
        self.unequal = any(shard.lengths for shard in found)  # whether latents are of unequal length
        self._maps: Open[mmap.mmap] = Open(self._open_map, limit)
        self._members: Open[tuple[Array, Array]] = Open(self._open_member, limit=4096)

    @classmethod
    def open(cls, paths: Sequence[str | Path], limit: int = OPEN) -> LatentIndex:
        """The shards at `paths`, in that order; `limit`: how many are mapped at the same time."""
        return cls([read_shard(path) for path in paths], limit)

    @property
    def parts(self) -> list[LatentIndex]:
        """This one alone: latents of one shape (several: `LatentBuckets`)."""
        return [self]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, indices: Array | Sequence[int], view: int | Array = 0) -> tuple[Array, Array]:
        """Moments float16 [n, 2C, *sides] of samples `indices` int64 [n], of one view or of a view each [n], and labels
        int64 [n] (-1 for none)."""
        indices = np.asarray(indices, np.int64)
        out, labels = np.empty((len(indices), *self.shape), np.float16), np.empty(len(indices), np.int64)
        if len(indices) == 0:
            return out, labels
        flat = out.reshape(len(out), -1).view(f"V{out[0].nbytes}")[:, 0]  # a sample is one item: one copy each
        each = np.broadcast_to(np.asarray(view, np.int64), indices.shape)
        for member, where, rows in self._groups(indices):
            moments, member_labels = self._members[member]
            flat[where] = moments[rows * self.views + each[where]]
            labels[where] = member_labels[rows]
        return out, labels

    def moments(self, indices: Array | Sequence[int], view: int | Array = 0) -> Array:
        """float16 [n, 2C, *sides]: the first part of `read`."""
        return self.read(indices, view)[0]

    def labels(self, indices: Array | Sequence[int] | None = None) -> Array:
        """int64 [n], -1 for none, of all samples or of `indices`; reads labels only."""
        indices = np.asarray(range(len(self)) if indices is None else indices, np.int64)
        out = np.empty(len(indices), np.int64)
        for member, where, rows in self._groups(indices):
            out[where] = self._members[member][1][rows]
        return out

    def places(self, indices: Array | Sequence[int]) -> Array:
        """bool [n, *sides]: which places of latents of unequal length are there."""
        indices = np.asarray(indices, np.int64)
        lengths = np.empty((len(indices), len(self.shape) - 1), np.int64)
        for member, where, rows in self._groups(indices):
            shard, place = self._places[member]
            part = self._shards[shard].lengths[place]
            values = np.frombuffer(self._maps[shard], part.dtype, int(np.prod(part.shape)), part.offset)
            lengths[where] = values.reshape(part.shape)[rows]
        return places(lengths, self.shape[1:])

    def keys(self, shard: int) -> list[str]:
        """The keys of all samples of a shard."""
        parts = self._shards[shard].keys
        raw = [np.frombuffer(self._maps[shard], p.dtype, p.shape[0], p.offset) for p in parts]
        return [bytes(key).decode() for part in raw for key in part]

    def _groups(self, indices: Array) -> list[tuple[int, Array, Array]]:
        """(member, places in `indices`, rows in the member) for each member that is met, rows ascending."""
        if len(indices) == 0:
            return []
        if int(indices.min()) < 0 or int(indices.max()) >= len(self):
            raise IndexError(f"samples {indices.min()} to {indices.max()} of {len(self)}")
        places = np.argsort(indices, kind="stable")
        ordered = indices[places]
        members = np.searchsorted(self._ends, ordered, side="right")
        rows = ordered - self._starts[members]
        cuts = [0, *(np.flatnonzero(np.diff(members)) + 1).tolist(), len(indices)]
        first = members[cuts[:-1]].tolist()
        return [(m, places[a:b], rows[a:b]) for m, a, b in zip(first, cuts[:-1], cuts[1:], strict=True)]

    def _open_map(self, shard: int) -> mmap.mmap:
        return map_file(self._shards[shard].path)

    def _open_member(self, member: int) -> tuple[Array, Array]:
        """A member's samples as opaque items, [n * views], and its labels [n]."""
        shard, place = self._places[member]
        part, label = self._shards[shard].moments[place], self._shards[shard].labels[place]
        content = self._maps[shard]
        item = int(np.prod(part.shape[2:])) * part.dtype.itemsize
        items = np.frombuffer(content, f"V{item}", part.shape[0] * part.shape[1], part.offset)
        return items, np.frombuffer(content, label.dtype, label.shape[0], label.offset)


@dataclass(frozen=True)
class LatentBuckets:
    """The latents of one split in buckets: an index a bucket, in the buckets' order; one may be empty."""

    parts: list[LatentIndex]

    def __len__(self) -> int:
        return sum(map(len, self.parts))
