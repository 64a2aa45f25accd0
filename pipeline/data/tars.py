"""WebDataset tars as sources: which shards a pattern means, and what identifies their content."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.listing import Digests, existing, plain
from pipeline.errors import UserError
from pipeline.files import read_json

if TYPE_CHECKING:
    from pipeline.schema.data import WebDatasetSource


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


def expand(pattern: str) -> list[str]:
    """The files or addresses that a pattern of tars matches, sorted. Braces are expanded as WebDataset does.

    UserError for an expanded name that matches nothing, where others do.
    """
    if plain(pattern) != pattern:
        raise UserError(f"data.source: {plain(pattern)}: the path is not UTF-8; rename it, or make a link to it")
    whole = _matches(pattern)
    if whole or "{" not in pattern:
        return whole
    from braceexpand import braceexpand

    try:
        each = {name: _matches(name) for name in braceexpand(pattern)}
    except ValueError as error:
        raise UserError(f"data.source: {pattern}: {error}; write ranges as {{000..099}}, choices as {{a,b}}") from None
    missing = [name for name, found in each.items() if not found]
    if missing and len(missing) < len(each):
        raise UserError(
            f"data.source: {len(missing)} of the {len(each)} tars of {pattern} are missing, the first is {missing[0]}: "
            "correct the range, or put them there"
        )
    return sorted({name for found in each.values() for name in found})


def _matches(pattern: str) -> list[str]:
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
        names = read_json(existing(str(path)))
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: expected a JSON list of class names")
    return names
