"""A folder whose name is short enough for Ray's sockets; held while it is used, and removed by a later run if who held
it was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.errors import UserError

INNER = "r"  # Ray's own folder inside of one that only this user may enter
LONGEST = 39  # bytes: 107 of a socket's path, less /r/session_DATE_TIME_PID/sockets/plasma_store.N
PREFIX = "ldm-ray-"  # mkdtemp adds 8 characters
USUAL = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - where a folder of one's own is made, as by mkdtemp


def fits(folder: str | Path) -> bool:
    """Whether Ray's sockets may lie in a folder."""
    return len(os.fsencode(folder)) <= LONGEST


def short_folder(places: Sequence[str] = USUAL) -> str:
    """A new folder of this user alone for Ray's session: in TMPDIR, or, where its name is too long (as schedulers set
    it), in the first of `places` that can be written.

    Raises UserError where there is none.
    """
    usual = tempfile.gettempdir()
    for parent in (usual, *places):
        if fits(Path(parent, PREFIX + 8 * "x")):
            try:
                return tempfile.mkdtemp(prefix=PREFIX, dir=parent)
            except OSError:
                continue  # not there, or not ours to write in
    room = LONGEST - len(PREFIX) - 9  # of mkdtemp, and a slash
    raise UserError(
        f"TMPDIR: {usual} is too long for the sockets of Ray, or cannot be written, and neither can "
        f"{', '.join(places)}; set TMPDIR to a folder of at most {room} characters"
    )


class Claim:
    """A lock on a folder of one's own, which ends with this process, however that ends. OSError where there is none."""

    def __init__(self, folder: Path) -> None:
        self.file = open(folder / "lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            (folder / "lock").unlink()  # what nobody can hold nobody may remove
            raise
        self.file.write(os.uname().nodename)
        self.file.flush()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def remove(folder: Path) -> bool:
    """Remove a claimed folder. Where somebody still writes into it, a later `sweep` finds what is left. False then."""
    shutil.rmtree(folder, ignore_errors=True)
    if left := folder.exists():
        (folder / "lock").write_text(os.uname().nodename)
    return not left


def sweep(folders: Iterable[Path], own: Path | None = None, young: float = 60.0) -> list[Path]:
    """Remove those that a process of this machine claimed and none holds: a SIGKILL left them. Returns them.

    own: is removed whatever its age and origin; UserError if a process holds it. young: seconds in which another may
    not have its lock yet. Locks of another machine may not be seen here, where file systems are shared.
    """
    gone = []
    for found in sorted(folders):
        with suppress(OSError):  # another user's, or just removed by its owner
            status = found.lstat()
            if status.st_uid != os.getuid() or (found != own and time.time() - status.st_mtime < young):
                continue
            with open(found / "lock", "a+" if found == own else "r+") as lock:
                if found != own and lock.read() != os.uname().nodename:
                    continue
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if found == own:
                        raise UserError(f"{found}: held by another process of this job") from None
                    continue
                gone += [found] if remove(found) else []
    return gone
