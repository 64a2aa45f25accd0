"""A fork that stands for a process of Python is what that process would be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.forks import Forks

TELL = """
import json, os, signal, sys
print(json.dumps({
    "parent": os.getppid(), "leads": os.getsid(0) == os.getpid(), "folder": os.getcwd(),
    "environment": dict(os.environ), "path": sys.path, "given": sys.stdin.read(),
    "files": sorted(os.listdir("/proc/self/fd"))[:-1],  # the last is of this look
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "name": __name__,
}))
print("said", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def some() -> Iterator[Forks]:
    """Forks that run code: `python -m timeit` does, once."""
    forks = Forks(["timeit"], ["json"], dict(os.environ))
    yield forks
    forks.close()


def told(popen: Any, folder: Path, session: bool) -> tuple[dict[str, Any], str, int]:
    command = [sys.executable, "-m", "timeit", "-n", "1", "-r", "1", TELL]
    environment = {"PATH": os.environ["PATH"], "ONLY": "this", "PYTHONPATH": str(folder)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = popen(command, env=environment, cwd=folder, start_new_session=session, text=True, **pipes)
    out, error = process.communicate("a line")
    return json.loads(out.splitlines()[0]), error, process.returncode


@pytest.mark.parametrize("session", [False, True])
def test_it_has_parent_session_folder_environment_and_files_of_its_own(
    some: Forks, tmp_path: Path, session: bool
) -> None:
    wanted, forked = told(subprocess.Popen, tmp_path, session), told(some.Popen, tmp_path, session)
    for facts, _, _ in (wanted, forked):  # Python says where it was started from, and in which locale
        facts["environment"] = {name: facts["environment"][name] for name in ("PATH", "ONLY", "PYTHONPATH")}
    assert forked == wanted
    assert forked[0]["parent"] == os.getpid() and forked[0]["leads"] == session and forked[0]["given"] == "a line"


def test_it_is_waited_for_and_killed(some: Forks) -> None:
    command = [sys.executable, "-m", "timeit", "-n", "1", "-r", "1"]
    failed = some.Popen([*command, "raise ValueError('on purpose')"], stderr=subprocess.PIPE, text=True)
    assert "on purpose" in failed.communicate()[1] and failed.returncode == 1
    process = some.Popen([*command, "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    other = some.Popen([sys.executable, "-c", "raise SystemExit(3)"])  # any other command
    assert other.wait(60) == 3
