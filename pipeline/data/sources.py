"""Where images come from: folder, table, arrays, digits, synthetic, WebDataset tars. Lists them, digests them.

A source is identified by the digest of its content listing, never by its path. This runs before the pipeline knows
whether there is anything to do, so nothing heavy is imported. A listing and its rows are `listing.py`'s, decoding and
writing shards `write_shards.py`'s; `stages/ingest.py` calls them in order.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import arrays, clips, parquet, rasters, sounds, synthetic, text_files
from pipeline.data.arrays import list_arrays, read_arrays
from pipeline.data.folders import walk
from pipeline.data.generated import MARK, marked
from pipeline.data.limit import limited
from pipeline.data.listing import FORMAT, Array, Digests, Listing, Row, Unread, class_order, existing, keys_of, plain
from pipeline.data.own_split import own_split
from pipeline.data.parquet_files import reader as parquet_reader
from pipeline.data.tables import list_table
from pipeline.data.tars import Tar, tar_classes, tar_listing
from pipeline.errors import UserError, many
from pipeline.files import digest

if TYPE_CHECKING:
    from pipeline.schema.data import Data, FolderSource, WebDatasetSource


def digests_folder_of(root: str | Path) -> Path:
    """Where the digests of source files are remembered between runs under this root."""
    return Path(root) / "cache"


def source_fingerprint(data: Data, digests_folder: str | Path | None = None) -> str:
    """SHA-256 (hex) of what the source holds; `digests_folder` remembers file digests between runs."""
    source = data.source
    digests = _digests(source, digests_folder)
    if source.kind == "webdataset":
        tars = [[tar.identity, tar.held_out] for tar in tar_listing(source, digests)]
        content: Any = [tars, tar_classes(source), *([source.image.lower()] if source.image else [])]
    elif source.kind == "arrays":
        content = arrays.identity(source, digests)
    elif source.kind == "table" and parquet.is_parquet(source.path):
        content = parquet.identity(source, digests)
    elif source.kind in synthetic.KINDS:
        content = [synthetic.VERSION, source.model_dump(mode="json")]
    else:
        found = _listed(data, digests)
        rows = [[row.key, row.digest, row.label, row.caption, row.attributes] for row in found.rows]
        content = [rows, found.classes, found.missing]
        if any(marked(row.attributes) for row in found.rows):  # which are split otherwise than they once were
            content.append(MARK)
        if found.bad:
            content.append(found.bad)
    digests.save()
    return digest([FORMAT, source.kind, content])


def open_listing(data: Data, digests_folder: str | Path | None = None) -> Listing:
    """The listing of a source that is no WebDataset, with file digests remembered in `digests_folder`."""
    digests = _digests(data.source, digests_folder)
    found = _listed(data, digests)
    digests.save()
    return found


def _listed(data: Data, digests: Digests) -> Listing:
    """The listing of a source in its own split if that decides, and no more of it than `data.limit`, which alone are
    read."""
    if data.source.kind in ("rasters", "sound"):
        listed = rasters.list_rasters if data.source.kind == "rasters" else sounds.list_sounds
        found = listed(data, digests)
        _some(found, data.source)
        return found if data.limit is None else limited(found, data.limit)
    if data.limit is None:
        found = listing(data.source, digests)
        return own_split(found) if data.split.by == "source" else found
    found = chosen(data)
    if data.source.kind == "table" and parquet.is_parquet(data.source.path):
        return replace(found, rows=parquet.with_digests(data.source, found.rows, digests))
    if data.source.kind in ("folder", "table", "clips"):
        return replace(found, rows=[replace(row, digest=digests.of(str(row.location))) for row in found.rows])
    return found


def chosen(data: Data) -> Listing:
    """The listing of a source, no more of it than `data.limit`, without reading images: names stand for digests."""
    if data.source.kind in ("rasters", "sound"):
        return _listed(data, Unread())
    found = listing(data.source, Unread())
    found = own_split(found) if data.split.by == "source" else found
    return found if data.limit is None else limited(found, data.limit)


def _digests(source: Any, digests_folder: str | Path | None) -> Digests:
    if digests_folder is None or source.kind in ("digits", *synthetic.KINDS):
        return Digests(None)
    name = hashlib.sha256(os.fsencode(Path(source.path).absolute())).hexdigest()[:16]
    return Digests(Path(digests_folder) / f"digests-{name}.json", private=source.kind == "rasters")


def listing(source: Any, digests: Digests) -> Listing:
    """List a source that is no WebDataset. Raises UserError where there is nothing to list."""
    if source.kind == "folder":
        found = _list_folder(source, digests)
    elif source.kind == "table":
        found = list_table(source, digests)
    elif source.kind in synthetic.KINDS:
        found = _list_synthetic(source)
    elif source.kind == "text":
        found = text_files.list_text(source)
    elif source.kind == "clips":
        found = clips.list_clips(source, digests)
    else:
        found = list_arrays(source)
    _some(found, source)
    return found


def _some(found: Listing, source: Any) -> None:
    """UserError where a source has no images."""
    if not found.rows:
        detail = (
            f" ({many(len(found.missing), 'named file')} missing, such as {found.missing[0]})" if found.missing else ""
        )
        if found.bad:
            count, first = many(len(found.bad), "text"), found.bad[0]
            detail += f" ({count} cannot be used; {first['key']}: {first['reason']}: {first['detail']})"
        detail += f" that are read, but {found.left_out}" if found.left_out else ""
        what = {"text": "text", "clips": "clips", "sound": "sounds"}.get(source.kind, "images")
        where = plain(str(getattr(source, "path", "")))
        raise UserError(f"data.source ({source.kind}) {where} holds no {what}{detail}: check the path")


def reader(source: Any) -> Callable[[str | int], bytes | Array]:
    """A function from a row's location to the file's bytes, or to an array [h, w] or [h, w, c], uint8 or uint16.
    Of `rasters`: `rasters.reader`, of sounds `sounds.reader`; of text a row's location is the passage."""
    if source.kind in ("digits", "arrays"):
        images, _ = read_arrays(source)
        return lambda location: images[int(location)]
    if source.kind in synthetic.KINDS:
        made = synthetic.reader(source)
        return lambda location: made(int(location))
    if source.kind == "table" and parquet.is_parquet(source.path):
        return parquet_reader(source.image)
    return lambda location: Path(str(location)).read_bytes()


# ---- folders and tables ----------------------------------------------------------------------------------------------


def _list_folder(source: FolderSource, digests: Digests) -> Listing:
    root = existing(source.path)
    found, rows = walk(root), []
    for inside, key in zip(found.files, keys_of([file.as_posix() for file in found.files]), strict=True):
        label = plain(inside.parent.as_posix()) if inside.parent != Path() else None
        stem, path = plain(inside.with_suffix("").as_posix()), root / inside
        rows.append(Row(key, str(path.absolute()), digests.of(path), label, together=None if key == stem else stem))
    return Listing(rows, class_order(row.label for row in rows if row.label), [], found.left_out)


def _list_synthetic(source: Any) -> Listing:
    classes, known = synthetic.factors(source)
    options = source.model_dump(mode="json")
    rows = [
        Row(f"{i:08d}", i, digest([synthetic.VERSION, options, i]), one.pop("class"), None, one)
        for i, one in enumerate(known)
    ]
    return Listing(rows, classes, [])


# ---- WebDataset tars -------------------------------------------------------------------------------------------------


def tar_digests(source: WebDatasetSource, digests_folder: str | Path | None) -> list[Tar]:
    """`tar_listing` with digests remembered in `digests_folder`."""
    return tar_listing(source, _digests(source, digests_folder))
