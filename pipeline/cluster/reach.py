"""Whether other machines answer at their ports."""

from __future__ import annotations

import socket

CONNECT = 5.0  # seconds a connection may take: within a site it takes milliseconds
MOST_FAILURES = 4  # connections that a node tries in vain: then it is clear enough


def reach(targets: list[tuple[str, str, int]], timeout: float = CONNECT) -> list[str]:
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
            failed[name] = f"cannot reach {name} at {address}:{port}: {why}"
    return list(failed.values())
