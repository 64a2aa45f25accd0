"""How a driver hears of Ctrl-C, a job's end and notice that machines go away, and asks the ranks to save and stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STOP_GRACE = 600  # seconds that workers have, after a stop was asked for, to save and end


class Stopped(Exception):
    """A person or the scheduler asked for an end; what was to be saved is saved.

    again: it was a notice that the machines go away, so the same command is to be given again elsewhere.
    asked: a signal asked for it, or a drain; False where a rank asked (a hopeless element of a sweep).
    """

    def __init__(self, again: bool = False, asked: bool = True) -> None:
        super().__init__()
        self.again, self.asked = again, asked


def in_thread(run: Callable[[], Any], watch: Callable[[], None], stop: Path) -> BaseException | None:
    """Run in a thread, so that this one can look at signals and progress. Returns what was raised."""
    raised: list[BaseException] = []

    def target() -> None:
        try:
            run()
        except BaseException as error:  # handed to the main thread, which raises it
            raised.append(error)

    thread = threading.Thread(target=target, name="ray-train", daemon=True)
    thread.start()
    asked = None
    with _on_signal(stop):
        while thread.is_alive():
            thread.join(0.3)
            watch()
            if stop.exists():
                asked = asked or time.monotonic()
                if time.monotonic() - asked > STOP_GRACE:
                    raise TimeoutError(f"the workers did not end within {STOP_GRACE} s of the request to stop")
    watch()
    return raised[0] if raised else None


@contextmanager
def _on_signal(stop: Path) -> Iterator[None]:
    """Ctrl-C, SIGTERM (a job's end) and SIGUSR1 (notice: to go on elsewhere) ask the ranks to save and stop.

    Ctrl-C twice stops at once. A SIGTERM after a notice makes it an end; a notice after it changes nothing.
    """
    if not in_main_thread():
        yield
        return

    def ask(number: int, _: Any) -> None:
        if stop.exists() and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGUSR1 and stop.exists() and stop.read_text():
            return
        stop.write_text(signal.Signals(number).name)
        print(f"{signal.Signals(number).name}: saving, then stopping", flush=True)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
