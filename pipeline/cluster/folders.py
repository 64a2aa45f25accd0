"""A folder whose name is short enough for Ray's sockets."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
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
