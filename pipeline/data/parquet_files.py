"""What Parquet files hold: which columns there are, where an image is, and its bytes, a batch of rows at a time.

Hugging Face's `datasets` writes into the schema which column is an image, and what class numbers mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BATCH = 128  # rows of images that are in memory at once
ROWS = 1024  # rows without images
PLACE = re.compile(r"(.*\.(?:parquet|pq)):(\d+):(\d+)", re.DOTALL | re.IGNORECASE)  # file, row group, row in it
DEFAULT = "image"  # the config's default column of images


@dataclass(frozen=True)
class Schema:
    """What the columns of a file are.

    image: the column of images; bytes, paths: where in it an image's content and its path are, with dots, or None.
    binary: columns that no JSON holds. images, names: by Hugging Face's metadata, the columns that are images, and the
    class names of columns of numbers.
    """

    columns: list[str]
    image: str
    bytes: str | None
    paths: str | None
    binary: list[str]
    images: list[str]
    names: dict[str, list[str]]


class Place(NamedTuple):
    """A row: its row group, its place in it, whether it holds its image, the path it gives, the columns asked for."""

    group: int
    row: int
    inside: bool
    path: str | None
    columns: dict[str, Any]


@contextmanager
def opened(file: Path) -> Iterator[ParquetFile]:
    """A Parquet file. Raises UserError where it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True) as table:
            yield table
    except (pa.ArrowException, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{file} is no whole Parquet file ({first}): write or copy it again") from error


def schema_of(file: Path, image: str) -> Schema:
    """The columns of a file whose images are in `image`; where that is the default and not there, in the one that
    Hugging Face's metadata calls an image. UserError where that is no column of images or paths."""
    import pyarrow as pa

    with opened(file) as table:
        schema = table.schema_arrow
    features = _features(schema.metadata or {})
    images = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    if image == DEFAULT and image not in schema.names and len(images) == 1:
        image = images[0]
    if image not in schema.names:
        hint = f"; {images[0]!r} is one of images" if images else ""
        raise UserError(f"{file}: no column {image!r}; there are {', '.join(schema.names)}{hint}: set `image`")
    kind = schema.field(image).type
    fields = {f"{image}.{f.name}": f.type for f in kind} if pa.types.is_struct(kind) else {image: kind}
    content = [name for name, one in fields.items() if _is_binary(one) and name in (image, f"{image}.bytes")]
    paths = [name for name, one in fields.items() if _is_text(one) and name in (image, f"{image}.path")]
    if not content and not paths:
        raise UserError(f"{file}: column {image!r} is of type {kind}; expected an image's bytes, a path, or both")
    return Schema(
        columns=list(schema.names),
        image=image,
        bytes=content[0] if content else None,
        paths=paths[0] if paths else None,
        binary=[f.name for f in schema if _holds_bytes(f.type) or f.name in images],
        images=images,
        names={name: one["names"] for name, one in features.items() if isinstance(one.get("names"), list)},
    )


def image_columns(file: Path) -> list[str]:
    """Columns that may be of images, the likeliest first: by the metadata, by name, by holding bytes."""
    with opened(file) as table:
        schema = table.schema_arrow
    features = _features(schema.metadata or {})
    known = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    named = [name for name in ("image", "img", "file", "path", "file_name", "filename") if name in schema.names]
    return list(dict.fromkeys([*known, *named, *(f.name for f in schema if _is_binary(f.type))]))


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """The features that Hugging Face's `datasets` notes in a schema; none where there are none that can be read."""
    try:
        found = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: one for name, one in found.items() if isinstance(one, dict)} if isinstance(found, dict) else {}


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return any(test(kind) for test in tests)


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    return _is_binary(kind) or (types.is_struct(kind) and any(_is_binary(field.type) for field in kind))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view))


def holds_lists(file: Path, column: str) -> bool:
    """Whether a column's values are lists."""
    from pyarrow import types

    with opened(file) as table:
        schema = table.schema_arrow
    kind = schema.field(column).type if column in schema.names else None
    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return kind is not None and any(test(kind) for test in tests)


def missing_images(file: Path, schema: Schema) -> list[int | None]:
    """Of each row group, how many rows do not hold their image; None where the file's statistics do not tell."""
    with opened(file) as table:
        return [_without(table, group, schema) for group in range(table.num_row_groups)]


def _without(table: ParquetFile, group: int, schema: Schema) -> int | None:
    found = table.metadata.row_group(group)
    if schema.bytes is None:
        return int(found.num_rows)
    columns = [found.column(i) for i in range(found.num_columns)]
    for column in columns:
        if column.path_in_schema == schema.bytes and column.statistics is not None:
            return int(column.statistics.null_count) if column.statistics.has_null_count else None
    return None


def places(file: Path, schema: Schema, columns: Sequence[str]) -> Iterator[Place]:
    """All rows of a file. Images are not read, but where the file does not tell otherwise whether they are there."""
    with opened(file) as table:
        for group in range(table.num_row_groups):
            all_inside = _without(table, group, schema) == 0
            place = 0
            for length, inside, paths, values in _batches(table, group, schema, columns, all_inside):
                for i in range(length):
                    record = {name: column[i] for name, column in zip(columns, values, strict=True)}
                    yield Place(group, place + i, inside[i], paths[i], record)
                place += length


def _batches(
    table: ParquetFile, group: int, schema: Schema, columns: Sequence[str], all_inside: bool
) -> Iterator[tuple[int, list[bool], list[str | None], list[list[Any]]]]:
    """Of some rows of a group: how many, whether each holds its image, its path, and the values by column."""
    looked = [name for name in (schema.bytes, schema.paths) if name and not all_inside]
    if not columns and not looked:
        rows = table.metadata.row_group(group).num_rows
        yield rows, [True] * rows, [None] * rows, []
        return
    most = BATCH if schema.bytes in looked else ROWS
    for batch in table.iter_batches(most, row_groups=[group], columns=[*columns, *looked]):
        rows = batch.num_rows
        inside: list[bool] = [all_inside] * rows
        paths: list[str | None] = [None] * rows
        if schema.bytes and schema.bytes in looked:
            inside = _leaf(batch, schema.bytes).is_valid().to_pylist()
        if schema.paths and schema.paths in looked:
            paths = _leaf(batch, schema.paths).to_pylist()
        yield rows, inside, paths, [batch.column(name).to_pylist() for name in columns]


def _leaf(batch: Any, column: str) -> Any:
    """A column of a batch, or a field of a column of structs."""
    import pyarrow.compute as pc

    if column in batch.schema.names:
        return batch.column(column)
    outer, _, inner = column.rpartition(".")
    return pc.struct_field(batch.column(outer), inner)


def reader(image: str) -> Callable[[str | int], bytes]:
    """A function from a row's location, FILE:GROUP:ROW or a path, to the image's bytes.

    Best asked in rising order: a row group is then read once, by batches.
    """
    state = _Reader(image)

    def read(location: str | int) -> bytes:
        place = PLACE.fullmatch(str(location))
        return Path(str(location)).read_bytes() if place is None else state.read(place[1], int(place[2]), int(place[3]))

    return read


class _Reader:
    """Where a reader is: a file, a row group of it, and a batch of that group's images."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._at: tuple[str, int] | None = None
        self._batches: Iterator[Any] = iter(())
        self._first = 0
        self._images: Any = ()

    def read(self, file: str, group: int, row: int) -> bytes:
        if self._at != (file, group) or row < self._first:
            self._at, self._first, self._images = (file, group), 0, ()
            self._batches = _images(Path(file), group, self._image)
        while row >= self._first + len(self._images):
            self._first += len(self._images)
            self._images = next(self._batches, None)
            if self._images is None:
                raise UserError(f"{file} has changed while it was read: run it again")
        value = self._images[row - self._first].as_py()
        return bytes(value) if value is not None else b""


def _images(file: Path, group: int, image: str) -> Iterator[Any]:
    """The images of a row group, an array of bytes a batch."""
    schema = schema_of(file, image)
    if schema.bytes is None:
        return
    with opened(file) as table:
        if group >= table.num_row_groups:
            return
        for batch in table.iter_batches(BATCH, row_groups=[group], columns=[schema.bytes]):
            yield _leaf(batch, schema.bytes)
