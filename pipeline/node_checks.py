"""What `ldm preflight` asks a machine: GPUs, memory, disks, clock, the shared root, ports, how fast it reads.

Each function runs on a node, needs no Ray, and says what is; what that means is judged in `preflight.py`.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHUNK = 4 * 2**20  # bytes a read
ROOT_WAIT = 10.0  # seconds until a file written on one node is seen on another: NFS keeps folders for a few
MOST_FAILURES = 4  # connections that a node tries in vain: then it is clear enough
UNLIMITED = 2**60  # a cgroup's limit above this many bytes is none

_listening: list[socket.socket] = []


def facts(root: str, cache: str | None) -> dict[str, Any]:
    """GPUs, memory and free disk of this machine. `root`: the artifact root; `cache`: where remote shards are kept."""
    gpus, trouble = _gpus()
    return {
        "host": socket.gethostname(),
        "gpus": gpus,
        "gpu_trouble": trouble,
        "memory": _memory(),
        "shared_memory": shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None,  # noqa: S108
        "root": _disk(Path(root)),
        "temporary": _disk(Path(cache or tempfile.gettempdir())),
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
        return [], str(getattr(error, "strerror", None) or error)
    if done.returncode:
        return [], " ".join((done.stdout + done.stderr).split())[:200]
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    names = ("name", "total", "used", "driver")
    return [
        {key: float(cell) * 2**20 if key in ("total", "used") else cell for key, cell in zip(names, row, strict=True)}
        for row in rows
    ], ""


def _memory() -> dict[str, float]:
    """Bytes: total and available, of the machine or of the control group if that allows less."""
    import psutil

    machine = psutil.virtual_memory()
    total, available = float(machine.total), float(machine.available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (float((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no control group, or `max`: no limit
        return {"total": total, "available": available}
    if limit < UNLIMITED:
        total, available = min(total, limit), min(available, limit - used)
    return {"total": total, "available": available}


def _disk(path: Path) -> dict[str, Any]:
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


# ---- the shared root -------------------------------------------------------------------------------------------------


def leave_token(folder: str, name: str, token: str) -> None:
    """Write this node's token into the folder that all nodes should share."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{name.replace('/', '-')}.token").write_text(token)


def read_tokens(folder: str, wait: float = ROOT_WAIT, want: int = 0) -> dict[str, str]:
    """The tokens that this node sees in the folder, by name; looks again for `wait` seconds until there are `want`."""
    begun = time.monotonic()
    while True:
        found = {path.stem: path.read_text() for path in Path(folder).glob("*.token")}
        if len(found) >= want or time.monotonic() - begun > wait:
            return found
        time.sleep(0.1)  # another machine writes: nothing to be notified by


# ---- ports -----------------------------------------------------------------------------------------------------------


def listen(address: str, count: int) -> list[int]:
    """Listen on free ports of `address`, as the ranks' process group will; gives the ports. `hang_up` closes them."""
    hang_up()
    for _ in range(count):
        one = socket.create_server((address, 0), backlog=256)  # the kernel answers: nobody has to accept
        _listening.append(one)
    return [one.getsockname()[1] for one in _listening]


def hang_up() -> None:
    """Close the ports that `listen` opened."""
    while _listening:
        _listening.pop().close()


def reach(targets: list[tuple[str, str, int]], timeout: float) -> list[str]:
    """Connect to each (name, address, port); gives a line for each that cannot be reached.

    One failure a name, and `MOST_FAILURES` in all: a wall that drops everything costs `timeout` each time.
    """
    failed: dict[str, str] = {}
    for name, address, port in targets:
        if name in failed or len(failed) == MOST_FAILURES:
            continue
        try:
            socket.create_connection((address, port), timeout).close()
        except OSError as error:
            why = "timed out" if isinstance(error, TimeoutError) else error.strerror or str(error)
            failed[name] = f"{name} at {address}:{port}: {why}"
    return list(failed.values())


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_cold(place: str) -> Iterator[int]:
    """Read a file (or an address, by fsspec) in chunks; gives their sizes. What this machine has cached is let go."""
    if "://" in place:
        import fsspec

        with fsspec.open(place, "rb", block_size=CHUNK) as remote:
            while chunk := remote.read(CHUNK):
                yield len(chunk)
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := os.read(handle, CHUNK):
            yield len(chunk)
    finally:
        os.close(handle)


def read_rate(
    places: list[str], seconds: float, most: float, seed: int = 0, read: Callable[[str], Iterator[int]] = read_cold
) -> dict[str, float]:
    """Bytes read and the seconds that took, of files in a shuffled order, until `seconds` or `most` bytes are over."""
    shuffled = random.Random(seed).sample(places, len(places))  # noqa: S311 - nodes begin with different files
    total, begun = 0, time.perf_counter()
    for place in shuffled:
        for size in read(place):
            total += size
            if total >= most or time.perf_counter() - begun > seconds:
                return {"bytes": float(total), "seconds": time.perf_counter() - begun}
    return {"bytes": float(total), "seconds": time.perf_counter() - begun}


def write_probe(folder: str, size: int) -> str:
    """Write a file of random bytes, flushed to the disk, for `read_rate`; gives its path."""
    path = Path(folder) / f"read-{socket.gethostname()}-{os.getpid()}.probe"
    block = os.urandom(min(size, CHUNK))
    with open(path, "wb") as file:
        for _ in range(max(1, size // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return str(path)


def wall_clock() -> float:
    """Seconds since 1970 by this machine's clock."""
    return time.time()
