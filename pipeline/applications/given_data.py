"""A user's data set for a trained model, image by image with what is known of each: `DATA` on a command line.

    a folder             of images, whose subfolders are classes; of tars
    a table              .csv, .tsv, .jsonl or .parquet, with a row an image
    an .npz, IDX files   arrays of images
    'train-*.tar'        WebDataset tars
    my.yaml              the source of a config, and its split

Each is listed and read as ingest does it (`pipeline/data/sources.py`); nothing is written. What is done with the images
is the business of `features.py`, `labelled.py` and `agreement.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import filters, limit, parquet, sources, tars
from pipeline.data.generated import marked
from pipeline.data.held_out import folds, group_of, split_of
from pipeline.data.index_tars import attributes_of, label_of, read_member, samples_of
from pipeline.data.pictures import Images
from pipeline.data.split import SPLITS
from pipeline.data.text_tables import SUFFIXES
from pipeline.data.transforms import BadImage, cover, decode, from_array, to_array
from pipeline.errors import UserError, many

if TYPE_CHECKING:
    from pipeline.schema.data import Data, Shape

Place = str | int | tuple[str, int, int]  # as of `listing.Row`; or bytes [offset, offset + length) of a tar
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Sample:
    """One image: its key, where it is, the SHA-256 of what is there, and what is known of it.

    together: what the split goes by. split: "train" or "val" in the training of DATA's config, "" where DATA is none.
    caption: of a table that has one.
    """

    key: str
    place: Place
    digest: str
    label: str | None
    columns: Mapping[str, Any]
    together: str
    held_out: bool = False  # by its tar
    split: str = ""
    caption: str | list[str] | None = None


def data_of(text: str, named: Mapping[str, str | None]) -> Data:
    """What DATA means, as a config has it. named: the columns `image` and `label` of a table. UserError for what is not
    there, and for what is no data."""
    from pydantic import ValidationError

    from pipeline import config
    from pipeline.schema.data import Data

    path, given = Path(text), {key: value for key, value in named.items() if value is not None}
    table = path.suffix.lower() in SUFFIXES or text.lower().endswith(parquet.SUFFIXES)
    if given and not table:
        name, value = next(iter(given.items()))
        raise UserError(f"--{name} {value}: {text} is no table, and says by itself what is what; leave it out")
    if is_config(text):
        return config.load(path).data
    source: dict[str, Any] = {"path": text}
    if table:
        source |= {"kind": "table", **given}
    elif text.endswith(".tar") or any(path.glob("*.tar")):
        source = {"kind": "webdataset", "path": str(path / "*.tar") if path.is_dir() else text}
    elif path.is_dir():
        source["kind"] = "folder"
    elif path.suffix == ".npz" or "ubyte" in path.name:
        source["kind"] = "arrays"
    else:
        wrong = "is no data" if path.exists() else "is not there"
        raise UserError(f"{text}: {wrong}; give a folder, a table, an .npz file, a pattern of tars or a config")
    try:
        return Data.model_validate({"source": source})
    except ValidationError as error:
        raise UserError(f"{text}: {error.errors()[0]['msg']}") from None


def is_config(text: str) -> bool:
    """Whether DATA is a config."""
    return Path(text).suffix.lower() in YAML


def listed(data: Data, digests_folder: Path, most: int | None, split: bool) -> list[Sample]:
    """The images, in the source's order. digests_folder: remembers their digests between calls. most: so many of them,
    in the classes' shares, the same ones each time. split: say of each which part of the training it was in. UserError
    where there is none."""
    if data.source.kind == "webdataset":
        found = list(_of_tars(data.source, digests_folder))
        if data.limit is not None:
            found = _limited(found, data.limit)
    else:
        if not split:  # else it must not change who is held out
            data = data.model_copy(update={"limit": most})
        rows = sources.open_listing(data, digests_folder)
        if rows.missing:
            print(f"{many(len(rows.missing), 'image')} not there, such as {rows.missing[0]}: left out", flush=True)
        found = [
            Sample(
                row.key,
                row.location,
                row.digest,
                row.label,
                row.attributes,
                row.together or row.key,
                caption=row.caption,
            )
            for row in rows.rows
        ]
    if not found:
        raise UserError(f"{getattr(data.source, 'path', data.source.kind)}: holds no images")
    if split:
        found = _split(data, found)
    return found if most is None else _limited(found, most)


def _limited(samples: list[Sample], most: int) -> list[Sample]:
    strata = [(sample.split, sample.held_out, sample.label) for sample in samples]
    return [samples[i] for i in limit.chosen([sample.key for sample in samples], strata, most)]


def _of_tars(source: Any, digests_folder: Path) -> Iterator[Sample]:
    for pattern in filter(None, (source.path, source.val)):
        if tars.is_remote(pattern):
            raise UserError(f"{pattern}: tars are read from this machine's disks here; copy them")
    classes = tars.tar_classes(source)
    for tar in sources.tar_digests(source, digests_folder):
        with open(tar.location, "rb") as file:
            for key, members, image in samples_of(Path(tar.location), tar.location, image=source.image):
                if image is None:
                    continue
                shown = f"{tar.location}: {key}"
                number = label_of(read_member(file, members["cls"]), shown, classes) if "cls" in members else None
                label = None if number is None else classes[number] if classes else str(number)
                place, identity = (tar.location, image.offset, image.length), f"{tar.identity}/{image.offset}"
                known = attributes_of(file, members.get("json"), shown)
                yield Sample(key, place, identity, label, known, key, tar.held_out)


def _split(data: Data, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with their splits, as ingest has them; what a model made is for training."""
    if data.split.by == "shards":
        return [replace(sample, split=SPLITS[sample.held_out and not marked(sample.columns)]) for sample in samples]
    fold_of: dict[str, int] = {}
    if data.split.folds is not None:
        real = (sample for sample in samples if not marked(sample.columns))
        groups = Counter(group_of(data, sample.key, dict(sample.columns)) for sample in real)
        fold_of = folds(groups, data.split.folds)
    return [
        replace(sample, split=SPLITS[split_of(data, sample.together, dict(sample.columns), fold_of)])
        for sample in samples
    ]


def reader(data: Data, channels: int, shape: Shape) -> Callable[[str, Place], Images]:
    """A function from a key and a place to the image uint8 [H, W, C] as the model takes it: filtered as the config
    says, resized so that it covers `shape` (height, width), and cut in the middle. It raises UserError for an image
    that cannot be used."""
    load = None if data.source.kind == "webdataset" else sources.reader(data.source)

    def read(key: str, place: Place) -> Images:
        try:
            if isinstance(place, tuple):
                path, offset, length = place
                with open(path, "rb") as file:
                    file.seek(offset)
                    content: Any = file.read(length)
            else:
                assert load is not None
                content = load(place)
            if isinstance(content, bytes):
                image = decode(content, channels, data.background, data.max_pixels)
            else:
                image = from_array(content, channels, data.background)
        except OSError as error:
            raise UserError(f"{key}: cannot be read ({error.strerror})") from None
        except BadImage as error:
            raise UserError(f"{key}: is no image that can be used ({error}); mend it, or leave it out") from None
        image = cover(filters.apply(image, data.filters), shape, whole=False)
        return np.ascontiguousarray(to_array(image).transpose(1, 2, 0))  # [C, H, W] -> [H, W, C]

    return read
