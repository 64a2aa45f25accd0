"""The index of an ingest artifact: which sample lies where. In memory a row a shard; the rest is memory-mapped.

A shard's sidecar (`NAME.rows.npy`) holds offset, length, label, split and key of each sample, training samples first.
With buckets (`data.buckets`) it holds the number of the sample's bucket as well, and what a split has of a bucket is a
run of rows: the index of one bucket is the same class over these runs.
Whether a shard was written by ingest or is a foreign tar that stays where it is makes no difference here.
"""

from __future__ import annotations

import json
import mmap
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from pipeline.data import array_members, transforms, waves
from pipeline.data.cache import local_copy
from pipeline.data.generated import marked
from pipeline.data.tars import is_remote
from pipeline.data.value_map import ValueMap
from pipeline.errors import UserError
from pipeline.files import atomic_path, digest, read_json, write_json

if TYPE_CHECKING:
    from pipeline.schema.data import Cache, Data, Shape

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")
SPLITS = ("train", "val")
TRIES = 1000  # samples that are drawn in place of one that cannot be read
OPEN = 128  # shards whose sidecar and tar are mapped at the same time


class Open(Generic[T]):
    """The `limit` values used last, made by `make(key)` when they are needed. Pickles as empty."""

    def __init__(self, make: Callable[[Any], T], limit: int = OPEN) -> None:
        self._make, self._limit = make, limit
        self._values: OrderedDict[Any, T] = OrderedDict()

    def __getitem__(self, key: Any) -> T:
        if key in self._values:
            self._values.move_to_end(key)
        else:
            while len(self._values) >= self._limit:
                self._values.popitem(last=False)
            self._values[key] = self._make(key)
        return self._values[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make, "_limit": self._limit, "_values": OrderedDict()}


def map_file(path: str | Path) -> mmap.mmap:
    """A file's bytes, mapped read-only."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def row_type(key_bytes: int, bucketed: bool = False) -> np.dtype[Any]:
    """A sidecar's row. label: -1 for none. meta: the sample's .json or .txt member, length 0 for none. bucket: only
    where there are buckets."""
    bucket = [("bucket", "u1")] if bucketed else []
    return np.dtype(
        [("offset", "<u8"), ("length", "<u4"), ("label", "<i4"), ("split", "u1"), ("meta_offset", "<u8"),
         ("meta_length", "<u4"), *bucket, ("key", f"S{max(1, key_bytes)}")]
    )  # fmt: skip


def write_rows(path: Path, rows: list[tuple[Any, ...]], bucketed: bool = False) -> None:
    """Write a sidecar by split (training first) and bucket, else in the shard's order. `rows`: as in `row_type`."""
    kind = row_type(max((len(row[-1]) for row in rows), default=1), bucketed)
    table = np.array(sorted(rows, key=lambda row: (row[3], row[6]) if bucketed else row[3]), kind)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array(file, table, version=(1, 0))


class ShardLost(UserError):
    """A shard is missing, or shorter than it was when it was indexed."""


class Read(NamedTuple):
    """Pixels [C, >= height, >= width], uint8 or as `data.values` says, of a clip [C, frames, ...]; the number of the
    sample they are of, and why it is another one than was asked for ("": it is not)."""

    pixels: Array
    sample: int
    why: str


def read_pixels(index: Index, i: int, data: Data) -> Read:
    """Sample i, or with `data.on_corrupt: skip` another one (of its bucket) where it cannot be read or `data.leave_out`
    names it: drawn by its number alone, so that all ranks and runs have the same, and no sample comes much more often.

    Raises UserError, naming shard and member, where the image is damaged.
    """
    shape, without = index.shape_of(i), left_out(data.leave_out)
    draw, sample, why = np.random.Generator(np.random.Philox(i)), i, ""
    for _ in range(TRIES):
        try:
            if index.shape_of(sample) == shape:
                if index.key(sample) in without:
                    raise transforms.BadImage("left out", "named in data.leave_out")
                return Read(_loaded(index.read(sample), data, shape), sample, why)
        except (transforms.BadImage, ShardLost) as error:
            if data.on_corrupt == "error" and isinstance(error, ShardLost):
                raise
            if data.on_corrupt == "error":
                raise UserError(
                    f"{index.name(i)}: {error}: restore the shard, run ingest again (--rebuild ingest), which leaves "
                    "it out, or set data.on_corrupt: skip"
                ) from error
            why = why or f"{index.name(i)}: {error}"
        sample = int(draw.integers(len(index)))
    raise UserError(f"{why}; nor can {TRIES} others that were drawn in its place: restore the shards")


def _loaded(content: bytes, data: Data, shape: Shape | None) -> Array:
    if data.sound:
        return waves.load(content, data)
    if data.values and data.source.kind == "webdataset":  # members as others have written them
        return array_members.load(content, data, shape)
    return transforms.load_with_margin(content, data, shape)


@lru_cache(maxsize=4)
def left_out(path: str | None) -> frozenset[str]:
    """The keys that a file names, one a line."""
    if path is None:
        return frozenset()
    try:
        return frozenset(Path(path).read_text().splitlines())
    except OSError as error:
        raise UserError(f"`data.leave_out`: {path}: {error.strerror}; give a file of keys, one a line") from error


def skip_recipe(data: Data) -> dict[str, Any]:
    """What decides on which samples others stand for: nothing unless `data.on_corrupt` is skip."""
    if data.on_corrupt == "error":
        return {}
    keys = {"leave_out": digest(sorted(left_out(data.leave_out)))} if data.leave_out else {}
    return {"on_corrupt": data.on_corrupt, **keys}


def read_image(index: Index, i: int, data: Data) -> Array:
    """Sample i as it is validated: the centre, uint8 (or as `data.values` says) [C, size, size] or of its bucket's
    shape, of a clip [C, T, size, size]. UserError as of `read_pixels`."""
    image: Array = read_views(index, i, data, ("as_is",))[0][0]
    return image


def read_views(index: Index, i: int, data: Data, views: Sequence[str]) -> tuple[Array, int, str]:
    """Sample i as it is encoded: its views as `transforms.cut_views` has them, uint8 [v, C, *sides of a sample], or in
    place of the square its bucket's shape; the number of the sample they are of, and why it is another one.

    UserError as of `read_pixels`.
    """
    pixels, sample, why = read_pixels(index, i, data)
    views_of: Array = transforms.cut_views(pixels, index.shape_of(i) or data.shape, views, index.key(sample), data.clip)
    return views_of, sample, why


def write_index(
    folder: Path, classes: list[str], shards: list[dict[str, Any]], shapes: Sequence[Shape] | None = None
) -> None:
    """Write index.json. A shard: {name, location (relative to the folder, absolute, or an address), sha256 of the tar,
    bytes, rows_sha256 of the sidecar, train, val (numbers of samples)}, and where there are buckets of these shapes
    {buckets: {train, val: numbers of samples by bucket}}, and where a model made some of train {generated: how many}.
    """
    buckets = {} if shapes is None else {"buckets": [list(shape) for shape in shapes]}
    write_json(folder / "index.json", {"version": 1, "classes": classes, **buckets, "shards": shards})


class Index:
    """The samples of one split of an ingest artifact, numbered through its shards; of one bucket, or of all.

    shapes: (height, width) of the buckets; none where images are squares.
    """

    def __init__(self, folder: Path, split: str, cache: Cache | None, bucket: int | None = None) -> None:
        table = read_json(folder / "index.json")
        self.folder, self.split, self.cache, self.bucket = folder, split, cache, bucket
        self.classes: list[str] = table["classes"]
        self.shapes: list[Shape] = [(height, width) for height, width in table.get("buckets", [])]
        self._skip = np.array([s["train"] if split == "val" else 0 for s in table["shards"]], np.int64)
        self.counts: Array = np.array([s[split] for s in table["shards"]], np.int64)  # samples of this split a shard
        if bucket is not None:
            by_bucket = [s["buckets"][split] for s in table["shards"]]
            self._skip += np.array([sum(counts[:bucket]) for counts in by_bucket], np.int64)
            self.counts = np.array([counts[bucket] for counts in by_bucket], np.int64)
        self._ends = np.cumsum(self.counts)
        self._generated = [s.get("generated", 0) if split == "train" else 0 for s in table["shards"]]
        self._names = [s["name"] for s in table["shards"]]
        self._locations = [s["location"] for s in table["shards"]]
        self._sha256 = [s["sha256"] for s in table["shards"]]
        self._rows_sha256 = [s["rows_sha256"] for s in table["shards"]]
        self._rows: Open[Array] = Open(self._open_rows)
        self._tars: Open[mmap.mmap] = Open(self._open_tar)

    @classmethod
    def open(cls, folder: str | Path, split: str, cache: Cache | None = None, bucket: int | None = None) -> Index:
        """`split`: train or val. `cache`: where copies of remote shards are kept (default: the temporary folder).
        `bucket`: number of one of the buckets; default: all samples."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is neither train nor val")
        return cls(Path(folder), split, cache, bucket)

    @cached_property
    def values(self) -> ValueMap | None:
        """What the images' values mean; None for 8 bits of gray or RGB."""
        return ValueMap.load(self.folder)

    @cached_property
    def parts(self) -> list[Index]:
        """An index a bucket; this one alone where images are squares."""
        if not self.shapes or self.bucket is not None:
            return [self]
        parts = [Index(self.folder, self.split, self.cache, bucket) for bucket in range(len(self.shapes))]
        for part in parts:  # a shard is open once, whatever the number of buckets in it
            part._rows, part._tars = self._rows, self._tars
        return parts

    def shape_of(self, i: int) -> Shape | None:
        """(height, width) of sample i's bucket; None where images are squares."""
        if not self.shapes:
            return None
        return self.shapes[int(self._row(i)["bucket"]) if self.bucket is None else self.bucket]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, i: int) -> tuple[int, int]:
        """Shard of sample i, and its row in that shard's sidecar."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return shard, int(i - (self._ends[shard] - self.counts[shard]) + self._skip[shard])

    def samples_of(self, shard: int) -> range:
        """The numbers of a shard's samples."""
        return range(int(self._ends[shard] - self.counts[shard]), int(self._ends[shard]))

    def shards(self) -> list[str]:
        """Names of the shards, by number."""
        return list(self._names)

    def shard_digest(self, shard: int) -> str:
        """SHA-256 (hex) over what this index has of a shard: the tar's bytes, the sidecar's, the split, the bucket."""
        bucket = [] if self.bucket is None else [self.bucket]
        return digest([self._sha256[shard], self._rows_sha256[shard], self.split, *bucket])

    def label(self, i: int) -> int:
        """Class of sample i; -1 for none."""
        return int(self._row(i)["label"])

    def labels(self) -> Array:
        """Classes of all samples, int64 [len]."""
        rows = enumerate(zip(self._skip, self.counts, strict=True))
        parts = [self._rows[shard]["label"][skip : skip + count] for shard, (skip, count) in rows if count]
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)

    def key(self, i: int) -> str:
        """Key of sample i, as the source names it."""
        return bytes(self._row(i)["key"]).decode()

    def read(self, i: int) -> bytes:
        """The file of sample i (.npy where there are `data.values`, .wav of a sound). Raises UserError, naming the
        shard, where it is gone."""
        shard, row = self.locate(i)
        place = self._rows[shard][row]
        return self._bytes(shard, int(place["offset"]), int(place["length"]))

    def place(self, i: int) -> tuple[int, int]:
        """Offset and length of sample i's image in its tar."""
        row = self._row(i)
        return int(row["offset"]), int(row["length"])

    def meta(self, i: int) -> dict[str, Any]:
        """Caption and attributes of sample i; empty where there are none."""
        shard, row = self.locate(i)
        place = self._rows[shard][row]
        if not place["meta_length"]:
            return {}
        content = self._bytes(shard, int(place["meta_offset"]), int(place["meta_length"]))
        if not content.lstrip().startswith(b"{"):
            return {"caption": content.decode("utf-8", "replace").strip()}
        return dict(json.loads(content))

    def generated(self) -> Array:
        """Whether a model made each sample, bool [len] (`generated.py`); reads shards with such samples only."""
        found = np.zeros(len(self), bool)
        for shard in np.flatnonzero(self._generated):
            for i in self.samples_of(int(shard)):
                found[i] = marked(self.meta(i))
        return found

    def name(self, i: int) -> str:
        """Sample i for messages: its shard and its member's key."""
        shard, _ = self.locate(i)
        return f"shard {self._locations[shard]}, member {self.key(i)}"

    def _row(self, i: int) -> Any:
        shard, row = self.locate(i)
        return self._rows[shard][row]

    def _bytes(self, shard: int, offset: int, length: int) -> bytes:
        content = self._tars[shard][offset : offset + length]
        if len(content) != length:
            raise ShardLost(f"shard {self._locations[shard]} is shorter than when it was indexed: copy it again")
        return content

    def _open_rows(self, shard: int) -> Array:
        rows: Array = np.load(self.folder / f"{self._names[shard]}.rows.npy", mmap_mode="r")
        return rows

    def tar(self, shard: int) -> tuple[Path, str]:
        """Where a shard's tar lies on this machine, fetched if need be, and how messages call it."""
        location = self._locations[shard]
        path = local_copy(location, self._sha256[shard], self.cache) if is_remote(location) else self.folder / location
        return path, location

    def _open_tar(self, shard: int) -> mmap.mmap:
        path, location = self.tar(shard)
        try:
            return map_file(path)
        except (FileNotFoundError, ValueError):
            raise ShardLost(
                f"shard {location} is missing or empty: put it back, or run ingest again (--rebuild ingest)"
            ) from None
