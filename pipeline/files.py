"""Writing files so that nothing half-written is believed, and hashing them. Knows nothing of stages or artifacts."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
SOURCE = Path(__file__).resolve().parents[1]  # the folder that holds pipeline/ and models/
NAMES = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)  # no path where a file or folder can be


@contextmanager
def disk_trouble() -> Iterator[None]:
    """Turn the errors of a full or read-only disk, or of a path that cannot be, which a user can mend, into a UserError
    that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno in NAMES and error.filename:
            raise UserError(f"{error.filename}: {error.strerror}; give another path") from error
        if error.errno not in DISK:
            raise
        place = error.filename or "a folder under `run.root`"
        raise UserError(
            f"{place}: {error.strerror}; make room or give rights there (or move `run.root`), then run again: "
            "it goes on where it stopped"
        ) from error


def expanded(path: str) -> str:
    """A path as a shell would read it: `~`, `~user`, `$VAR` and `${VAR}` put in; of an address only variables.

    ValueError for a variable that is not set and a user who is not known, unless a file has that very name.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise ValueError(f"the variable {name} is not set; set it, or write the path out")
        return os.environ[name]

    try:
        text = re.sub(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", value, path)
        home = os.path.expanduser(text) if text.startswith("~") else text  # noqa: PTH111 - the text stays as it is
        if home.startswith("~"):
            user = home.split("/")[0]
            raise ValueError(f"there is no home of {user}; write the path out (a name may begin as ./{user})")
    except ValueError:
        if not os.path.lexists(path):
            raise
        return path
    return home


def plain(path: str | Path) -> Path:
    """The absolute path without `..`, whichever folder it is read from later. Links are followed only where a `..`
    comes after them: what lies above is above their target."""
    parts = Path(path).absolute().parts
    upto = max((i + 1 for i, part in enumerate(parts) if part == ".."), default=0)
    return Path(*parts[:upto]).resolve().joinpath(*parts[upto:]) if upto else Path(*parts)


def make_folder(path: Path) -> None:
    """Make a folder, with those above it. UserError where none can be, as below /proc."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}); give another path") from None


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is flushed to disk and renamed onto `path`, else removed.

    The temporary name is random, so that two writers never share one (a process id is not enough on shared storage),
    and ends in `.tmp`, so that readers that list a folder can ignore it.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: str | Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def save_tensors(path: str | Path, tensors: Mapping[str, Any], about: dict[str, str] | None = None) -> None:
    """Write contiguous torch tensors as a safetensors file with the texts `about`, whole or not at all.

    It gets the rights of other new files (safetensors gives 0600, whatever the umask), and a disk that is full or
    read-only is an OSError, as elsewhere (safetensors raises an error of its own, with the number in its text).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        temporary.touch()
        rights = temporary.stat().st_mode
        try:
            save_file(dict(tensors), temporary, about)
        except SafetensorError as error:
            if found := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
            raise
        temporary.chmod(rights)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN and infinity are refused: they are not JSON."""
    atomic_write(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text())


def canonical_json(value: Any) -> str:
    """The one spelling of `value` as JSON: sorted keys, no spaces. Equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) over the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
