"""Spools on disk: which files there are, which of their lines count, and whether the process that wrote them lives.

Read by the shipper and by `tracker.py`, which writes them (class Spool). A spool is a file of JSON lines.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.files import digest


def spool_stem(run: str) -> str:
    """The file name of a run key, without token: readable, and one to one by its digest."""
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', run)[:48]}-{digest(run)[:8]}"


def spool_files(root: str | Path) -> tuple[list[Path], list[Path]]:
    """All spools under `root`: (of pipelines, of stages), sorted, so that a lower token comes first."""
    root = Path(root)
    return sorted(root.glob("pipelines/*/spool/*.jsonl")), sorted(root.glob("artifacts/*/*/work/spool/*.jsonl"))


def whole_lines(path: Path, start: int = 0, end: int | None = None) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(offset after the line, its object) of the whole lines in [start, end); None for a line that was torn.

    What a kill left without its newline is not a line yet: the next writer closes it (then it comes as None).
    """
    with open(path, "rb") as file:
        file.seek(start)
        while (end is None or start < end) and (line := file.readline()).endswith(b"\n"):
            start += len(line)
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            yield start, event if isinstance(event, dict) else None


def spool_ends(files: list[Path]) -> dict[Path, int]:
    """Up to which byte each spool counts: its size, or what the writer with a higher token saw when it took over.

    Lines that a superseded writer (a cut-off node) appends after that would be a second copy of its successor's.
    """
    ends = {path: path.stat().st_size for path in files}
    for path in files:
        _, first = next(whole_lines(path), (0, None))
        for name, size in (first or {}).get("follows", {}).items():
            older = path.with_name(name)
            if older in ends:
                ends[older] = min(ends[older], size)
    return ends


def process_identity(pid: int) -> dict[str, Any]:
    """Host, boot, namespace of pids (a container has its own), pid and start time (clock ticks since boot) of a
    process: no other process ever has the same."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "pids": str(namespace.readlink()) if namespace.is_symlink() else "",
        "pid": pid,
        "started": _start_ticks(pid),
    }


def _start_ticks(pid: int) -> int:
    """Start time of a living process, 0 where there is none (also a zombie: it writes no more)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def surely_dead(identity: Mapping[str, Any]) -> bool:
    """True if the process is gone for certain. A process of another host, boot or container is never judged from here:
    two machines may share a host name, and a pid means nothing in another container."""
    here = process_identity(int(identity["pid"]))
    if any(identity.get(key) != here[key] for key in ("host", "boot", "pids")):
        return False
    return bool(identity["started"] != here["started"])
