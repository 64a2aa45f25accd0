"""WebDataset shards: plain tars, written byte for byte the same each time, and read only where that is safe.

A sample is the run of members that share a key: the member's name up to the first dot after the last slash. Of foreign
tars WebDataset's own functions say what a key and a sample is. This file knows tars; what the members mean is the
business of `sources.py`, `index.py` and `latent_shards.py`.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.data.folders import hidden
from pipeline.data.listing import LeftOut
from pipeline.errors import UserError

BLOCK = tarfile.BLOCKSIZE
META = re.compile(r"__[^/]*__($|/)")  # as `tar_file_iterator` of WebDataset has it
MAGIC = {  # the first bytes of compressed files, and the command that unpacks each
    b"\x1f\x8b": "gzip -dc",
    b"BZh": "bzip2 -dc",
    b"\xfd7zXZ\x00": "xz -dc",
    b"\x28\xb5\x2f\xfd": "zstd -dc",
}


class Member(NamedTuple):
    """A file in a tar: its data are bytes [offset, offset + length) of the tar."""

    name: str
    offset: int
    length: int


class TarWriter:
    """Writes members to an open file and tells where their data lie. No times, no owners: equal input, equal bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = 0

    def add(self, name: str, *pieces: bytes | memoryview) -> Member:
        """Write one member, its data in `pieces` one after the other."""
        info = tarfile.TarInfo(name)
        info.size = sum(len(piece) for piece in pieces)
        info.mode = 0o644
        header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        self._file.write(header)
        for piece in pieces:
            self._file.write(piece)
        self._file.write(b"\0" * (-info.size % BLOCK))
        member = Member(name, self._at + len(header), info.size)
        self._at = member.offset + info.size + (-info.size % BLOCK)
        return member

    def close(self) -> None:
        """Write the two empty blocks that end a tar. The file itself stays open."""
        self._file.write(b"\0" * (2 * BLOCK))


def scan(path: str | Path, shown: str | None = None) -> list[Member]:
    """All regular files of a tar, in order; `shown` is the name for messages (a cached copy's address).

    Raises UserError, naming shard and member, for: a missing or compressed file, absolute names or `..`, links and
    devices, a damaged header, an end that is missing.
    """
    shown = shown or str(path)
    try:
        with open(path, "rb") as file:
            refuse_compressed(file.read(8), shown)
            file.seek(0)
            return list(_members(file, os.fstat(file.fileno()).st_size, shown))
    except FileNotFoundError:
        raise UserError(f"shard {shown} is missing: put it back, or run ingest on where it is now") from None


def refuse_compressed(start: bytes, shown: str) -> None:
    """Raise UserError with the command that repacks if `start` (8 bytes) opens a compressed file."""
    for magic, command in MAGIC.items():
        if start.startswith(magic):
            plain = Path(shown).name.removesuffix(".gz").removesuffix(".bz2").removesuffix(".xz").removesuffix(".zst")
            plain = f"{plain.removesuffix('.tgz').removesuffix('.tar')}.tar"
            raise UserError(
                f"shard {shown} is compressed, and samples are read from the middle of a shard: "
                f"repack it with `{command} {shown} > {Path(shown).parent / plain}`"
            )


def _members(file: BinaryIO, size: int, shown: str) -> Iterator[Member]:
    last = "its start"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every member it has seen
                if info.isdir():
                    continue
                _check_safe(info, shown)
                if info.offset_data + info.size > size:
                    raise UserError(f"shard {shown} is truncated in member {info.name}: write or copy the shard again")
                last = f"member {info.name}"
                yield Member(info.name, info.offset_data, info.size)
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"shard {shown} is damaged after {last} ({error}): write or copy it again") from error
    # tarfile takes a damaged header in the middle for the end: an end is an empty block, nothing else.
    file.seek(end - BLOCK if end == size else end)
    block = file.read(BLOCK)
    if len(block) != BLOCK or any(block):
        what = "is truncated" if len(block) != BLOCK or end == size else "has a damaged header"
        raise UserError(f"shard {shown} {what} after {last}: write or copy the shard again")


def _check_safe(info: tarfile.TarInfo, shown: str) -> None:
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise UserError(f"shard {shown}: member {info.name!r} points outside (absolute, or with ..): repack the shard")
    if not info.isreg() or info.issparse():
        raise UserError(f"shard {shown}: member {info.name!r} is a link, device or sparse file: repack it as a file")


def key_and_extension(name: str) -> tuple[str, str]:
    """WebDataset's split of a member's name: "a/b.seg.png" -> ("a/b", "seg.png")."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def samples(members: Iterable[Member], left_out: LeftOut | None = None) -> Iterator[tuple[str, dict[str, Member]]]:
    """Group neighbouring members by key: (key, {extension: member}), by WebDataset's own functions.

    Without members of which a part is hidden (archivers add `._x.png` beside `x.png`), and without those that
    WebDataset skips; `left_out` counts them. Imports WebDataset, and torch with it.
    """
    from webdataset.tariterators import base_plus_ext, group_by_keys

    left = LeftOut() if left_out is None else left_out

    def taken() -> Iterator[dict[str, object]]:
        for member in members:
            if any(map(hidden, member.name.split("/"))):
                left.add("hidden members", member.name)
            elif META.match(member.name):
                left.add("members named __NAME__, which WebDataset skips", member.name)
            elif base_plus_ext(member.name)[0] is None:
                left.add("members without an extension, which belong to no sample", member.name)
            else:
                yield {"fname": member.name, "data": member, "__url__": ""}

    def again(error: Exception) -> bool:  # raised for a name that comes twice in a sample: the first one stays
        left.add("members whose name comes twice in a sample", str(error.args[0]).partition(": ")[0])
        return True

    for sample in group_by_keys(taken(), handler=again):
        del sample["__url__"]
        yield sample.pop("__key__"), sample


def safe_key(key: str) -> str:
    """`key` as a member's name: dots, which would end the key, `%` and empty parts (a leading /) are encoded by %."""
    return "/".join(part.replace("%", "%25").replace(".", "%2E") or "%" for part in key.split("/"))
