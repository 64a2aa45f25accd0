"""The image files under a folder, in a fixed order, and what else lies there: hidden, linked in a circle, not readable.

One rule for all who take a folder: ingest, `ldm init`, `ldm evaluate --images`, `ldm denoise`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from stat import S_ISREG

from pipeline.data.listing import LeftOut
from pipeline.data.transforms import FORMATS, HEIF

ADDED = ("__MACOSX", "@eaDir")  # folders that archivers and storage add: previews, resource forks
UNREAD = {  # suffixes of images that are not read; heic and its like where their package is missing
    "jxl", "svg", "svgz", "psd", "psb", "raw", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "jp2", "j2k",
    "jpx", "jpf", "jxr", "wdp", "tga", "ico", "icns", "exr", "hdr", "dds", "eps", "ai", "xcf", "kra", "apng", "pbm",
    "pnm", "pfm", "pcx", "qoi", "bpg", "fits", "dcm", "nii", "emf", "wmf", "heics", "avifs", "mpo", *HEIF,
}  # fmt: skip


RASTERS = "which `data.source.kind: rasters` reads"


@dataclass
class Walked:
    """files: paths inside the folder. left_out: what was not taken, by reason."""

    files: list[Path] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)


def hidden(name: str) -> bool:
    """Whether a part of a path is left out: it begins with a dot, or an archiver has added it."""
    return (name.startswith(".") and name not in (".", "..")) or name in ADDED


def hidden_path(path: PurePath) -> bool:
    """Whether any part of a path is hidden."""
    return any(map(hidden, path.parts))


def unread(suffix: str) -> str | None:
    """Why an image of this suffix (no dot, small letters) is not read, to count by; None if it is none, or is read."""
    if suffix in FORMATS or suffix not in UNREAD:
        return None
    how = {**dict.fromkeys(HEIF, "which the extra `heif` reads"), "dcm": RASTERS, "nii": RASTERS}
    return f".{suffix} files, {how.get(suffix, 'a format that is not read')}"


def walk(root: Path) -> Walked:
    """All image files under `root`: folder by folder, by name. Links to folders are followed, each folder once."""
    found = Walked()
    for folder, subfolders, files in _folders(root, found.left_out):
        inside = folder.relative_to(root)
        subfolders.sort()
        for name in sorted(files):
            suffix = Path(name).suffix[1:].lower()
            reason = unread(suffix)
            if suffix not in FORMATS and reason is None:
                continue
            path = inside / name
            if hidden(name):
                found.left_out.add("hidden images", str(path))
            elif reason is not None:
                found.left_out.add(reason, str(path))
            elif _is_file(root / path, found.left_out):
                found.files.append(path)
    return found


def files_under(root: Path, wanted: Callable[[Path], bool]) -> tuple[list[Path], LeftOut]:
    """Files under `root` that are `wanted` (by their whole path), as paths inside it, in the order of `walk`, and what
    was not taken; of a root that is a file: that file."""
    found, left_out = [], LeftOut()
    if not root.is_dir():
        return [Path(root.name)] if wanted(root) else [], left_out
    for folder, subfolders, files in _folders(root, left_out):
        subfolders.sort()
        for name in sorted(files):
            if not hidden(name) and _is_file(folder / name, left_out) and wanted(folder / name):
                found.append((folder / name).relative_to(root))
    return found, left_out


def _folders(root: Path, left_out: LeftOut) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As os.walk, without what is hidden; a folder that is reached by several ways is met once."""

    def unreadable(error: OSError) -> None:
        left_out.add(f"folders that cannot be read ({error.strerror})", str(error.filename))

    seen = {_identity(root)}
    for name, subfolders, files in os.walk(root, onerror=unreadable, followlinks=True):
        folder = Path(name)
        kept = []
        for one in sorted(subfolders):
            path = folder / one
            if hidden(one):
                left_out.add("hidden folders", str(path.relative_to(root)))
            elif path.is_symlink() and _listed_anyway(path, root):
                left_out.add("links to folders that are listed anyway", str(path.relative_to(root)))
            elif _identity(path) in seen:
                left_out.add("links in a circle, or to a folder that is there already", str(path.relative_to(root)))
            else:
                seen.add(_identity(path))
                kept.append(one)
        subfolders[:] = kept
        yield folder, subfolders, files


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _listed_anyway(link: Path, root: Path) -> bool:
    """Whether a link leads to where this walk comes anyway, or to a folder that holds `root`."""
    target, top = link.resolve(), root.resolve()
    if top.is_relative_to(target):
        return True
    return target.is_relative_to(top) and not hidden_path(target.relative_to(top))


def _is_file(path: Path, left_out: LeftOut) -> bool:
    try:
        if S_ISREG(path.stat().st_mode):
            return True
        left_out.add("pipes, sockets or devices", path.name)
    except OSError:
        left_out.add("links that lead nowhere", path.name)
    return False
