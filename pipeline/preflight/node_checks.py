"""What `ldm preflight` asks a machine: GPUs, memory, disks, clock, the shared root, ports, how fast it reads.

Each function runs on a node, needs no Ray, and says what is; what that means is judged in `verdicts.py`.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK = 2**18  # bytes a read: even a store that is hardly there gives one within the time of an answer
UNLIMITED = 2**60  # a control group's limit above this many bytes is none

_listening: list[socket.socket] = []  # open as long as this process lives


def facts(root: str, cache: str | None) -> dict[str, Any]:
    """GPUs, memory and free disk of this machine. `root`: the artifact root; `cache`: where remote shards are kept."""
    gpus, trouble = _gpus()
    return {
        "host": socket.gethostname(),
        "gpus": gpus,
        "gpu_trouble": trouble,
        "memory": memory(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")),
        "shared_memory": shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None,  # noqa: S108
        "root": disk(Path(root)),
        "temporary": disk(Path(tempfile.gettempdir())),
        "cache": disk(Path(cache)) if cache else None,
        "own_name": _own_name(),
        "interface": os.environ.get("GLOO_SOCKET_IFNAME"),
    }


def _gpus() -> tuple[list[dict[str, Any]], str]:
    """The GPUs that the driver shows, and what it says if it shows none."""
    keys = ("name", "memory.total", "memory.used", "driver_version")
    command = ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi: {getattr(error, 'strerror', None) or error}"
    if done.returncode:
        return [], " ".join((done.stdout + done.stderr).split())[:200]
    found = []
    for line in done.stdout.splitlines():
        name, total, used, driver = (cell.strip() for cell in line.split(","))
        # a machine of one memory for CPU and GPU says [N/A]
        sizes = [float(cell) * 2**20 if cell.replace(".", "").isdigit() else None for cell in (total, used)]
        found.append({"name": name, "total": sizes[0], "used": sizes[1], "driver": driver})
    return found, ""


def memory(groups: Path, mine: Path) -> dict[str, float]:
    """Bytes: total and available, of the machine or of the tightest control group that this process is in (Slurm makes
    one a job and one a step). groups: where control groups are mounted; mine: the list of this process's."""
    import psutil

    machine = psutil.virtual_memory()
    total, available = float(machine.total), float(machine.available)
    for line in mine.read_text().splitlines() if mine.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, limit, used = (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
        if not controllers:  # version 2
            base, limit, used = (groups, "memory.max", "memory.current")
        for folder in [base / path.lstrip("/"), *(base / path.lstrip("/")).parents]:
            try:
                most, taken = (float((folder / name).read_text()) for name in (limit, used))
            except (OSError, ValueError):  # the root of all groups has none; `max`: no limit
                continue
            if most < UNLIMITED:
                total, available = min(total, most), min(available, most - taken)
    return {"total": total, "available": available}


def disk(path: Path) -> dict[str, Any]:
    """Free bytes and files where `path` is or would be made, as this user may use them."""
    while not path.exists() and path != path.parent:
        path = path.parent
    free = os.statvfs(path)
    files = free.f_favail if free.f_files else None  # some file systems make them as needed
    return {"path": str(path), "free": free.f_bavail * free.f_frsize, "files": files}


def _own_name() -> str:
    """The address that this machine's own name stands for: what gloo offers to other machines."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError as error:
        return f"none ({error.strerror})"


def wall_clock() -> float:
    """Seconds since 1970 by this machine's clock."""
    return time.time()


# ---- the shared root -------------------------------------------------------------------------------------------------


def meet(folder: str, number: int, everyone: int, wait: float) -> list[int]:
    """Leave a file in the folder that all nodes should share; gives the numbers of those whose files do not appear.

    Looks again for `wait` seconds: what one node writes, another sees late (NFS keeps folders for a few seconds), and
    nothing tells of it. OSError where nothing can be written. The folder itself is another's to make.
    """
    begun, written, missing = time.monotonic(), False, list(range(everyone))
    while missing and time.monotonic() - begun < wait:
        if not written and Path(folder).is_dir():
            (Path(folder) / str(number)).touch()
            written = True
        missing = [other for other in missing if not (Path(folder) / str(other)).exists()]
        time.sleep(0.1 if missing else 0)
    return missing


# ---- ports -----------------------------------------------------------------------------------------------------------


def listen(address: str, count: int) -> list[int]:
    """Listen on free ports of `address`, as the ranks' process group will; gives the ports."""
    opened = [socket.create_server((address, 0), backlog=256) for _ in range(count)]  # the kernel answers: no accept
    _listening.extend(opened)
    return [one.getsockname()[1] for one in opened]


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_cold(place: str) -> Iterator[int]:
    """Read a file (or an address, by fsspec) in chunks; gives their sizes. What this machine has cached is let go."""
    if "://" in place:
        import fsspec

        with fsspec.open(place, "rb", block_size=CHUNK) as remote:
            while chunk := remote.read(CHUNK):
                yield len(chunk)
        return
    with open(place, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := file.read(CHUNK):
            yield len(chunk)


def read_rate(places: list[str], seconds: float, most: float, seed: int) -> float:
    """Bytes a second of files in an order shuffled by `seed`, until `seconds` or `most` bytes are over."""
    shuffled = random.Random(seed).sample(places, len(places))  # noqa: S311 - nodes begin with different files
    total, begun = 0, time.perf_counter()
    for place in shuffled:
        for size in read_cold(place):
            total += size
            if total >= most or time.perf_counter() - begun > seconds:
                return total / (time.perf_counter() - begun)
    return total / (time.perf_counter() - begun)


def write_probe(path: str, size: int) -> None:
    """Write a file of `size` random bytes, flushed to the disk, for `read_rate`."""
    with open(path, "wb") as file:
        for start in range(0, size, CHUNK):
            file.write(os.urandom(min(CHUNK, size - start)))
        os.fsync(file.fileno())
