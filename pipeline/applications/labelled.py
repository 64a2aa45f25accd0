"""A user's labelled real images for a trained model, all in memory: a folder, a table, arrays, or WebDataset tars.

They are found and decoded as ingest does it; what is marked as generated is left out, what cannot be used is named.
What is done with them is the business of `augment.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import index_tars, sources, tars
from pipeline.data.generated import marked
from pipeline.data.listing import Unread, class_order
from pipeline.data.pictures import Images
from pipeline.data.transforms import BadImage, decode, from_array, shrink, to_array
from pipeline.errors import UserError
from pipeline.schema.data import ArraysSource, Data, FolderSource, Source, TableSource, WebDatasetSource

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
BACKGROUND, MOST = (Data.model_fields[name].default for name in ("background", "max_pixels"))
Found = tuple[str, str | None, dict[str, Any], Callable[[], Any]]  # key, class, attributes, its image


@dataclass(frozen=True)
class Labelled:
    """images: uint8 [n, H, W, C], at the model's size; values: of each its class, or its value of the column; keys and
    metas: of each its key and its attributes; classes: all values, in the order of their numbers; digest: of the
    source's content; generated: images that were left out, since a model made them."""

    images: Images
    values: list[str]
    keys: list[str]
    metas: list[dict[str, Any]]
    classes: list[str]
    digest: str
    generated: int


def source_of(given: str, image: str, label: str | None) -> Source:
    """What DATA on a command line means: a folder of tars, a folder of images, tars by a pattern, a table, arrays."""
    path = Path(given)
    if path.is_dir() and any(path.glob("*.tar")):
        return WebDatasetSource(kind="webdataset", path=str(path / "*.tar"))
    if path.is_dir():
        return FolderSource(kind="folder", path=given)
    if path.suffix == ".tar" or any(sign in given for sign in "*{"):
        return WebDatasetSource(kind="webdataset", path=given)
    if path.suffix in TABLES:
        return TableSource(kind="table", path=given, image=image, label=label)
    if path.suffix == ".npz":
        return ArraysSource(kind="arrays", path=given)
    raise UserError(f"{given}: expected a folder, tars, an .npz file or a table ({', '.join(TABLES)})")


def read(source: Source, column: str | None, shape: tuple[int, int, int]) -> Labelled:
    """All images of a source that have a class, or a value of `column`, at shape (height, width, channels), a square.

    UserError for a source that holds none, and for an image that cannot be used.
    """
    names = tars.tar_classes(source) if source.kind == "webdataset" else None
    found = _of_tars(source, names, shape[2]) if source.kind == "webdataset" else _of_listing(source, shape[2])
    what = f"value of {column!r}" if column else "class"
    images, values, keys, metas, generated, without = [], [], [], [], 0, 0
    for key, label, attributes, image in found:
        value = label if column is None else attributes.get(column)
        told = value is not None and bool(str(value).strip())
        generated, without = generated + marked(attributes), without + (not told)
        if marked(attributes) or not told:
            continue
        try:
            pixels = to_array(shrink(image(), shape[0], square=True)).transpose(1, 2, 0)  # [C, H, W] -> [H, W, C]
        except BadImage as error:
            raise UserError(f"{key}: cannot be used ({error}); mend or remove it") from None
        images.append(pixels)
        values.append(str(value).strip())
        keys.append(key)
        metas.append(attributes)
    where = getattr(source, "path", source.kind)
    if not images:
        raise UserError(f"{where}: no real image with a {what}; name its column (--label or --by), or give other data")
    if without:
        print(f"{where}: {without:,} images without a {what} are left out", flush=True)
    classes = class_order(values) if names is None or column else names
    digest = sources.source_fingerprint(Data(source=source))
    return Labelled(np.stack(images), values, keys, metas, classes, digest, generated)


def _of_listing(source: Any, channels: int) -> Iterator[Found]:
    listing, load = sources.listing(source, Unread()), sources.reader(source)
    if listing.missing:
        print(f"{len(listing.missing):,} images are not there, such as {listing.missing[0]}: left out", flush=True)
    for row in listing.rows:

        def image(location: Any = row.location) -> Any:
            content = load(location)
            if not isinstance(content, bytes):
                return from_array(content, channels, BACKGROUND)
            return decode(content, channels, BACKGROUND, MOST, Path(str(location)).suffix[1:].lower() or None)

        yield row.key, row.label, row.attributes, image


def _of_tars(source: WebDatasetSource, names: list[str] | None, channels: int) -> Iterator[Found]:
    places = tars.expand(source.path)
    if not places:
        raise UserError(f"{source.path}: no file matches; correct the pattern")
    for place in places:
        if tars.is_remote(place):
            raise UserError(f"{place}: tars elsewhere are not read here; copy them to a disk")
        with open(place, "rb") as file:
            for key, members, member in index_tars.samples_of(Path(place), place):
                shown = f"{place}: {key}"
                if member is None:
                    raise UserError(f"{shown}: has no image; mend or remove it")
                attributes = index_tars.attributes_in(file, members.get("json"), shown)
                label = None
                if "cls" in members:
                    number = index_tars.label_in(index_tars.content_of(file, members["cls"]), shown, names)
                    label = names[number] if names else str(number)

                def image(member: Any = member, file: Any = file) -> Any:
                    extension = member.name.rpartition(".")[2].lower()
                    return decode(index_tars.content_of(file, member), channels, BACKGROUND, MOST, extension)

                yield key, label, attributes, image
