"""A bounded local folder of copies of remote shards, shared by a machine's processes. Reading is done elsewhere."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.files import atomic_path, atomic_write, sha256_file

if TYPE_CHECKING:
    from pipeline.schema.data import Cache

from typing import TYPE_CHECKING

GIGABYTES = 20.0  # without a config


def cache_folder(cache: Cache | None) -> Path:
    """Where copies are kept."""
    if cache is not None and cache.path:
        return Path(cache.path)
    return Path(tempfile.gettempdir()) / f"ldm-shards-{os.getuid()}"


def local_copy(location: str, sha256: str | None, cache: Cache | None, identity: str = "") -> Path:
    """The path of a local copy of `location` (an fsspec address), copied and hashed once, kept while there is room.

    `sha256` (hex): what the bytes must hash to; None: not known yet, then `identity`, what the store tells of the file
    without reading it, says whether an earlier copy is of the same bytes. Raises UserError for a shard that cannot be
    read, that changed since it was indexed, or that is larger than the cache. A copy that another process has mapped
    stays readable for it when it is removed here.
    """
    folder = cache_folder(cache)
    folder.mkdir(parents=True, exist_ok=True)
    name = sha256 or hashlib.sha256(f"{location}\n{identity}".encode()).hexdigest()
    note = folder / f"{name}.sha256"  # of an address and identity: the SHA-256 by which its copy is called
    with _locked(folder / f"{name}.lock"):
        known = sha256 or (note.read_text() if note.exists() else "unknown")
        path = folder / f"{known}.tar"
        if path.exists():
            os.utime(path)  # used last: evicted last
            return path
        path = _copy(location, folder / f"{name}.new", sha256, int((cache.gigabytes if cache else GIGABYTES) * 1e9))
        if sha256 is None:
            atomic_write(note, path.stem)
    return path


def _copy(location: str, new: Path, sha256: str | None, limit: int) -> Path:
    """Copy a shard to `new`, and call it by its SHA-256; that path."""
    import fsspec

    try:
        system, remote = fsspec.core.url_to_fs(location)
        size = int(system.size(remote))
        if size > limit:
            raise UserError(f"shard {location} has {size} bytes, over the {limit} of data.cache.gigabytes: raise it")
        with _locked(new.parent / "evict.lock"):
            _evict(new.parent, limit - size)  # make room first: the bound holds while the copy is written
        with atomic_path(new) as temporary:
            system.get_file(remote, str(temporary))
            found = sha256_file(temporary)
            if sha256 not in (None, found):
                raise UserError(
                    f"shard {location} changed since it was indexed (its SHA-256 differs): run ingest again"
                )
        return new.replace(new.parent / f"{found}.tar")
    except OSError as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"shard {location} cannot be copied to {new.parent} ({what}): check both") from error


def _evict(folder: Path, limit: int) -> None:
    """Remove the copies used longest ago until at most `limit` bytes are left."""
    copies = sorted((file.stat().st_mtime_ns, file.stat().st_size, file) for file in folder.glob("*.tar"))
    total = sum(size for _, size, _ in copies)
    for _, size, file in copies:
        if total <= limit:
            return
        file.unlink()
        total -= size


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
