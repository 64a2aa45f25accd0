"""The process that carries spools to MLflow: `python -m pipeline.tracking.shipper --root ROOT`; tracker.py starts it.

It sends first and stores its offset after, and may be killed between the two: every call can be made again (see
mlflow_store.py). MLflow is imported when there is a first line to send.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TextIO

from pipeline.tracking.links import resolve_uri, tracking_folder
from pipeline.tracking.shipping import Shipping
from pipeline.tracking.tracker import left

POLL_S = 1.5
RETRY_S = 5.0  # between tries while the tracker is down


# ---- the process


def parent_left(parent: int, wait_s: float) -> bool:
    """Wait up to `wait_s`; True as soon as standard input has ended, or if the parent is not `parent` any more."""
    ready, _, _ = select.select([sys.stdin], [], [], wait_s)
    return bool(ready and not os.read(sys.stdin.fileno(), 1024)) or os.getppid() != parent


def take(lock: TextIO) -> bool:
    """Take the lock of the root's one shipper, if it is free."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def run(root: Path, uri: str, parent: int | None, drain_s: float) -> None:
    """Ship until the parent leaves (None: at once), then send the rest for at most `drain_s` seconds.

    While another shipper has the lock this one only waits: the other sends our lines as well.
    """
    folder = tracking_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    leave_at = time.monotonic() + drain_s if parent is None else None
    shipping: Shipping | None = None
    with open(folder / "lock", "w") as lock:
        while True:
            if shipping is None and take(lock):
                shipping = Shipping(root, uri)
            done = shipping.ship(leave_at or time.monotonic() + 30.0) if shipping else not left(root, uri)
            if shipping and done:
                shipping.repair()
            trouble = bool(shipping and shipping.state.get("trouble"))
            if leave_at is not None:
                if done or trouble or time.monotonic() > leave_at:
                    return
                time.sleep(0.0 if shipping else 0.5)  # the lock is another's: look again
            elif parent is not None and parent_left(parent, RETRY_S if trouble else POLL_S):
                leave_at = time.monotonic() + drain_s


def main() -> None:
    """Read the command line; the tracking URI comes from MLFLOW_TRACKING_URI (it may hold a password)."""
    parser = argparse.ArgumentParser(description="Carry the spools of a root to MLflow.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--parent", type=int, help="end when this process, our parent, is gone or closes our input")
    parser.add_argument("--drain-seconds", type=float, required=True, help="at most this long for the rest at the end")
    options = parser.parse_args()
    os.nice(10)  # training goes first
    if options.parent:  # `ray job stop` signals the whole tree: we leave after our parent, with its last lines
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    root = options.root.absolute()
    run(root, resolve_uri(root), options.parent, options.drain_seconds)


if __name__ == "__main__":
    main()
