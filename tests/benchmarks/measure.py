"""How long a command takes and how much memory: `python3 tests/benchmarks/measure.py make demo`.

Memory is that of all processes that descend from the command, Ray's and the tracker's too, together: proportional set
sizes (a page that n processes share counts 1/n in each), looked at once a second; the largest sum is printed. Linux
only. Needs nothing but Python, so that it also measures an installation.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path


def memory(mark: str) -> int:
    """Bytes of all processes with the mark in their environment: some outlive their parent."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:  # it has just ended, or is another user's
            continue
    return total


def main(command: list[str]) -> int:
    mark, begun, peak = uuid.uuid4().hex, time.monotonic(), 0
    child = subprocess.Popen(command, env={**os.environ, "LDM_MEASURED": mark})
    while child.poll() is None:
        peak = max(peak, memory(mark))
        time.sleep(1)
    print(f"{time.monotonic() - begun:.0f} s, {peak / 1e9:.1f} GB of memory, {os.cpu_count()} cores")
    return child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
