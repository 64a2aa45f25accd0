"""A look at images before there is a config: what kind of source, how many, how large, which classes, what is wrong.

Reads headers of all files (or of a sample of very many) and decodes some of them. What follows from it for a config is
`pipeline/planning/starter.py`; ingest looks at every image again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import arrays, index_tars, listing, parquet, shards, sources, tars, transforms, twins
from pipeline.data.captions import captions_of
from pipeline.data.folders import hidden, walk
from pipeline.data.own_split import own_split, split_number
from pipeline.data.parquet_files import PLACE
from pipeline.data.text_tables import SUFFIXES
from pipeline.errors import UserError, many
from pipeline.files import sha256_file
from pipeline.planning import look_arrays, look_members, look_rasters, look_tables

HEADERS = 20_000  # files whose header is read, at most, evenly spread
STRETCHES = 16  # of rows in Parquet files, which are read by the batch
LEAST_HELD_OUT = 5  # images with which a source's own split is worth keeping
DECODED = 200  # images that are decoded, evenly spread
HELD_OUT_WORDS = ("val", "valid", "validation", "test", "eval", "dev")


@dataclass
class Found:
    """What a look has told.

    source: the config's `data.source`. keys: of all images, in order, where they are known without reading (of files of
    one name under several suffixes that name: they stay together). labels: their classes. classes: name -> images (of
    those looked at). left_out: what lies there and is not taken. groups: column that names who or what is on several
    images, and each image's value. sizes: (width, height) of the images looked at. gray, transparent, dark: shares of
    the decoded images (dark: of the transparent ones, drawn in nearly white). problems: reason -> images, of `looked`
    images. captions, metas: of images, in tars of the first of them, a caption (empty for none), and the other columns.
    own: the source has a split of its own; `count` and `keys` are then of the training images. notes: what the
    listing tells.
    """

    source: dict[str, Any]
    count: int
    keys: list[str] = field(default_factory=list)
    classes: Counter[str] = field(default_factory=Counter)
    groups: tuple[str, list[str]] | None = None
    captions: list[str] = field(default_factory=list)
    metas: list[Mapping[str, Any]] = field(default_factory=list)
    held_out: int | None = None  # images in validation tars, or for validation by the source's own split
    labels: list[str | None] = field(default_factory=list)
    own: bool = False
    channels: int | None = None  # of images that are not 8 bits of gray or RGB, with `values`
    values: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    gray: float = 0.0
    transparent: float = 0.0
    light: float = 0.0
    looked: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    left_out: listing.LeftOut = field(default_factory=listing.LeftOut)


def look(text: str) -> Found:
    """Look at a folder of images, tars or tables, a .csv, .tsv, .jsonl, .parquet, .npz or IDX file, tars or Parquet
    files (a pattern), or `digits`.

    Raises UserError where there is nothing that the pipeline could read.
    """
    if text == "digits" and not Path(text).exists():
        return _look_at_arrays({"kind": "digits"})
    if parquet.is_parquet(text) and not Path(text).is_dir():
        return _look_at_table(*look_tables.parquet_source(text))
    if "*" in text or ("{" in text and not Path(text).exists()) or text.endswith(".tar"):
        return _look_at_tars(text)
    path = Path(text).absolute()
    if not path.exists():
        raise UserError(f"--source {text}: does not exist (looked from {Path.cwd()}); give a folder or a file")
    if path.is_dir():
        return _look_in_folder(path)
    if look_rasters.holds_rasters(path):
        return Found(**look_rasters.look(path))
    if path.suffix.lower() in SUFFIXES:
        return _look_at_table(*look_tables.table_source(path))
    if path.suffix == ".npz" or path.name.removesuffix(".gz").endswith(("-ubyte", ".idx", "idx3")):
        return _look_at_arrays(look_arrays.source_of(path))
    raise UserError(
        f"--source {text}: expected a folder, .csv, .tsv, .jsonl, .parquet, .npz, an IDX file, or a pattern of "
        ".tar or .parquet files in quotes"
    )


def _look_in_folder(path: Path) -> Found:
    """A folder holds tars, or one table that names images, or arrays, or images."""
    tars = sorted(path.glob("*.tar"))
    if tars:
        return _look_at_tars(str(path / "*.tar"))
    if look_rasters.holds_rasters(path):
        return Found(**look_rasters.look(path))
    tables = sorted(t for suffix in SUFFIXES for t in path.glob(f"*{suffix}") if not hidden(t.name))
    named = [table for table in tables if look_tables.image_column(table)]
    if len(named) == 1:
        return _look_at_table(*look_tables.table_source(named[0]))
    if len(named) > 1:
        raise UserError(
            f"{path}: {len(named)} tables name images ({', '.join(t.name for t in named)}); give one of them"
        )
    arrays = sorted(a for a in [*path.glob("*.npz"), *path.glob("*images*ubyte*")] if not hidden(a.name))
    if arrays and not _holds_images(path):
        chosen = next((a for a in arrays if a.name.startswith("train")), arrays[0])
        return _look_at_arrays(look_arrays.source_of(chosen))
    if not _holds_images(path) and any(p.suffix.lower() in parquet.SUFFIXES for p in path.rglob("*")):
        return _look_at_table(*look_tables.parquet_source(str(path)))
    return _look_at_files({"kind": "folder", "path": str(path)})


def _holds_images(path: Path) -> bool:
    return bool(walk(path).files)


# ---- files -----------------------------------------------------------------------------------------------------------


def _validated(source: dict[str, Any]) -> Any:
    from pydantic import TypeAdapter

    from pipeline.schema.data import Source

    adapter: TypeAdapter[Any] = TypeAdapter(Source)
    return adapter.validate_python(source)


def _look_at_files(source: dict[str, Any]) -> Found:
    chosen = _validated(source)
    listed = sources.listing(chosen, listing.Unread())
    rows = listed.rows
    found = Found(source, len(rows) + len(listed.missing))
    _count_rows(found, listed)
    found.left_out = listed.left_out
    found.captions = [_caption(row.caption) for row in rows]
    found.metas = [row.attributes for row in rows]
    headers = _some(rows)
    share = len(headers) / max(1, len(rows))
    found.problems["missing"] = round(len(listed.missing) * share)
    found.problems["duplicate key"] = round((len(rows) - len({row.key for row in rows})) * share)
    found.problems["duplicate"] = _duplicates([Path(str(r.location)) for r in headers if not _inside(r)])
    found.looked = len(headers) + found.problems["missing"]
    good, read = [], sources.reader(chosen)
    for row in headers:
        try:
            found.sizes.append(_size(row, read))
            good.append(row)
        except transforms.BadImage as error:
            found.problems[error.reason] += 1
    decoded = spread(good, DECODED)
    bad = _pixels(found, (bytes(read(row.location)) for row in decoded))
    found.problems["undecodable"] += round(bad * len(good) / max(1, len(decoded)))
    if not found.sizes:
        raise UserError(f"{source.get('path')}: none of {many(len(rows), 'file')} is an image that can be read")
    return found


def _count_rows(found: Found, listed: listing.Listing) -> None:
    """Keys, classes and what a listing tells; of the training images where the source has a split of its own."""
    held_out = [False] * len(listed.rows)
    with contextlib.suppress(UserError):  # it has none
        own = own_split(listed)
        marked = [bool(split_number(row.attributes, row.key)) for row in own.rows]
        if sum(marked) >= LEAST_HELD_OUT:
            listed, held_out, found.own = own, marked, True
    rows = [row for row, held in zip(listed.rows, held_out, strict=True) if not held]
    if found.own:
        found.count, found.held_out = len(rows), sum(held_out)
    found.keys, found.labels = [row.together or row.key for row in rows], [row.label for row in rows]
    found.notes = listed.notes
    found.classes = Counter(row.label for row in rows if row.label is not None)


def _inside(row: listing.Row) -> bool:
    return PLACE.fullmatch(str(row.location)) is not None


def _some(rows: Sequence[listing.Row]) -> list[listing.Row]:
    """Rows to look at: evenly spread; those inside of Parquet files in stretches, since they are read by the batch."""
    if not any(_inside(row) for row in spread(rows, DECODED)):
        return spread(rows, HEADERS)
    length = 2 * DECODED // STRETCHES
    starts = spread(range(0, len(rows), length), STRETCHES)
    return [row for start in starts for row in rows[start : start + length]]


def _size(row: listing.Row, read: Callable[[str | int], Any]) -> tuple[int, int]:
    if _inside(row):
        return _header(io.BytesIO(read(row.location)), "")
    with open(str(row.location), "rb") as file:
        return _header(file, Path(str(row.location)).suffix[1:].lower())


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of them, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _duplicates(paths: Sequence[Path]) -> int:
    """Files that have the same bytes as an earlier one. Only files of equal length are read."""
    by_size: dict[int, list[Path]] = {}
    for path in paths:
        by_size.setdefault(path.stat().st_size, []).append(path)
    alike = [same for same in by_size.values() if len(same) > 1]
    return sum(len(same) - len({sha256_file(path) for path in same}) for same in alike)


def _header(file: Any, extension: str) -> tuple[int, int]:
    """(width, height), upright, from a file's header. Raises BadImage as ingest would."""
    from PIL import Image, UnidentifiedImageError

    try:
        if extension in transforms.HEIF:
            transforms.open_heif()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                if extension in transforms.FORMATS and image.format not in transforms.FORMATS[extension]:
                    raise transforms.BadImage("wrongly named", f".{extension} holds {image.format}")
                width, height = image.size
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except UnidentifiedImageError:
        raise transforms.BadImage("undecodable", "no known image format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise transforms.BadImage("undecodable", str(error)) from error
    if width * height > 50_000_000:
        raise transforms.BadImage("oversized", f"{width}x{height}")
    return (height, width) if turned else (width, height)


def _pixels(found: Found, contents: Iterator[bytes]) -> int:
    """Decode images, and note how many are gray and transparent, and which are one picture in files of other bytes;
    returns how many cannot be decoded."""
    from PIL import Image

    seen: dict[bytes, set[bytes]] = {}  # pixels -> digests of the files that hold them
    gray = transparent = light = bad = count = 0
    for content in contents:
        try:
            whole = transforms.decode(content, 3, (255, 255, 255), 50_000_000)
        except transforms.BadImage:
            bad += 1
            continue
        count += 1
        files = seen.setdefault(twins.pixel_digest(whole), set())
        files.add(hashlib.sha256(content).digest())
        with Image.open(io.BytesIO(content)) as image:
            image.thumbnail((64, 64))
            pixels = np.asarray(image.convert("RGBA")).astype(int)  # [h, w, 4]
        visible = pixels[pixels[..., 3] > 128][:, :3]  # [n, 3]
        gray += not len(visible) or int((visible.max(1) - visible.min(1)).max()) <= 8
        if (pixels[..., 3] < 128).mean() > 0.01:
            transparent += 1
            light += bool(len(visible)) and float(visible.mean()) > 220
    found.gray, found.transparent = gray / max(1, count), transparent / max(1, count)
    found.light = light / max(1, transparent)
    found.problems["duplicate"] += sum(len(files) - 1 for files in seen.values())
    return bad


# ---- tables, arrays and tars -----------------------------------------------------------------------------------------


def _look_at_table(source: dict[str, Any], groups: look_tables.Groups | None, notes: list[str]) -> Found:
    found = _look_at_files(source)
    found.notes = [*found.notes, *notes]
    if groups and not found.own and len(groups[1]) == len(found.keys):
        found.groups = groups
    return found


def _look_at_arrays(source: dict[str, Any]) -> Found:
    chosen = _validated(source)
    images, _ = arrays.read_arrays(chosen)
    listed = arrays.list_arrays(chosen)
    found = Found(source, len(images), looked=len(images))
    _count_rows(found, listed)
    found.sizes = [(images.shape[2], images.shape[1])]
    found.problems["duplicate"] = len(images) - len({row.digest for row in listed.rows})
    colour = images.ndim == 4 and images.shape[3] > 1
    sample = np.stack(spread(list(images), DECODED))[..., :3].astype(int) if colour else None
    found.gray = 1.0 if sample is None else float(((sample.max(-1) - sample.min(-1)).max((1, 2)) <= 8).mean())
    return found


def _look_at_tars(pattern: str) -> Found:
    if tars.is_remote(pattern):
        raise UserError(
            f"--source {pattern}: looks at local files only; copy one tar here, look at it, change the path"
        )
    paths = sorted(Path(p) for p in tars.expand(pattern))
    if not paths:
        raise UserError(f"--source {pattern}: no such file (looked from {Path.cwd()})")
    prefixes: dict[str, list[Path]] = {}
    for path in paths:
        prefixes.setdefault(re.sub(r"[-_.]?\d+\.tar$", "", path.name), []).append(path)
    held_out = [prefix for prefix in prefixes if set(re.split(r"[^a-z]+", prefix.lower())) & set(HELD_OUT_WORDS)]
    folder = paths[0].parent.absolute()
    source: dict[str, Any] = {"kind": "webdataset", "path": str(folder / Path(pattern).name)}
    train = paths
    if len(held_out) == 1 and len(prefixes) == 2:
        (rest,) = set(prefixes) - set(held_out)
        train = prefixes[rest]
        source |= {"path": str(folder / f"{rest}*.tar"), "val": str(folder / f"{held_out[0]}*.tar")}
    found = Found(source, 0)
    arrays_in = look_members.arrays_in(train[0])
    per_tar = max(1, (look_rasters.LOOKED if arrays_in else DECODED) // len(train))
    contents: list[bytes] = []
    names = look_members.class_names(folder)
    for path in train:
        samples = list(index_tars.samples_of(path, str(path), found.left_out, arrays_in))
        found.count += len(samples)
        found.keys += [key for key, _, _ in samples]
        with open(path, "rb") as file:
            for i, (_, members, image) in enumerate(samples):
                _count_label(found, file, members, names)
                if len(found.metas) < HEADERS:
                    found.metas.append(look_members.meta_of(file, members))
                    found.captions.append(_caption(found.metas[-1].get("caption")))
                if i % max(1, len(samples) // per_tar) == 0:
                    _count_image(found, file, image, contents, arrays_in is not None)
    if len(train) < len(paths):
        found.held_out = sum(len(list(shards.samples(shards.scan(path)))) for path in prefixes[held_out[0]])
    if arrays_in:
        return replace(found, **look_members.measured(contents, arrays_in, source, found.problems))
    bad = _pixels(found, iter(contents))
    found.problems["undecodable"] += bad
    if not found.sizes:
        left_out = f"; there are {found.left_out}" if found.left_out else ""
        raise UserError(
            f"{pattern}: no images in the {len(paths)} tars (members of {', '.join(transforms.FORMATS)}){left_out}"
        )
    return found


def _count_label(found: Found, file: Any, members: dict[str, Any], names: list[str] | None) -> None:
    if "cls" not in members:
        found.labels.append(None)
        return
    file.seek(members["cls"].offset)
    label = file.read(members["cls"].length).decode(errors="replace").strip()
    known = names is not None and label.isdigit() and int(label) < len(names)
    found.labels.append(names[int(label)] if known and names else label)
    found.classes[str(found.labels[-1])] += 1


def _caption(value: Any) -> str:
    return next(iter(captions_of(value)), "")


def _count_image(found: Found, file: Any, member: shards.Member | None, contents: list[bytes], arrays: bool) -> None:
    found.looked += 1
    if member is None:
        found.problems["no image"] += 1
        return
    extension = member.name.rpartition(".")[2].lower()
    file.seek(member.offset)
    content = file.read(member.length)
    try:
        if not arrays:
            found.sizes.append(_header(io.BytesIO(content), extension))
        contents.append(content)
    except transforms.BadImage as error:
        found.problems[error.reason] += 1
