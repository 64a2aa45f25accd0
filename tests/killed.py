"""A call that is killed by SIGKILL again and again, a file further each time, until it comes to its end.

A file gets its name by a rename, when it is whole: between two of them nothing changes that is believed later. A call
is a fork of this process, which has imported all; Python tells it of its renames (`sys.addaudithook`).
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def killed(call: Callable[[], object], at: int) -> bool:
    """Make a call in a fork that dies before its rename number `at`; False where it came to its end before."""
    if pid := os.fork():
        status = os.waitpid(pid, 0)[1]
        assert status in (0, signal.SIGKILL)
        return status == signal.SIGKILL
    left = at

    def hook(event: str, _: Any) -> None:
        nonlocal left
        if event == "os.rename":
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        call()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def content(where: Path) -> dict[str, bytes]:
    """All files below a folder by name, but for temporary ones; of spools, which hold the time, the names alone."""
    files = [file for file in where.rglob("*") if file.is_file() and ".tmp" not in str(file.relative_to(where))]
    return {str(file.relative_to(where)): b"" if file.suffix == ".jsonl" else file.read_bytes() for file in files}


def goes_on(call: Callable[[], object], where: Path, want: dict[str, bytes], changing: tuple[str, ...] = ()) -> int:
    """Kill a call before each rename that makes a difference below `where`, check that what is there is as in `want`
    each time (files that end in `changing` become so), and all of it at the end; how often it was killed."""
    at, times, before = 1, 0, content(where)
    while killed(call, at):
        left = content(where)
        at, times = at + (left == before), times + 1
        assert {name: file for name, file in left.items() if not name.endswith(changing)}.items() <= want.items()
        before = left
    assert content(where) == want
    return times
