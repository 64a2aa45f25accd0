"""Processes of Python that are forks of one which has imported what they need: `python -m MODULE` in milliseconds.

MLflow is imported in two to four seconds of a processor, by each shipper and twice by each server. `Forks` starts a
process that imports once. While its `Popen` stands in place of `subprocess.Popen`, the modules it is told are run in
forks of that process, each a child of who asked, with its own pid, session, folder, environment, arguments and files;
only `/proc/PID/cmdline` is not its own. Any other command is started as always.

    python forks.py SOCKET MODULES IMPORTS    # the process itself; names with commas between
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import inspect
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: who has it is given the orphans among its descendants
LARGEST = 2**20  # bytes of a request
ALONE = {  # one thread, for a fork has no more
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTHONWARNINGS": "ignore",
}
Request = dict[str, Any]


def popen(modules: list[str], fork: Callable[[Request, list[int]], int]) -> type[subprocess.Popen[Any]]:
    """A `subprocess.Popen` that leaves `python -m` of these modules to `fork`, which returns the pid of a child."""
    names = inspect.signature(subprocess.Popen._execute_child)

    class Popen(subprocess.Popen[Any]):
        def _execute_child(self, *given: Any) -> None:
            asked = names.bind(self, *given).arguments
            command = asked["args"] if isinstance(asked["args"], list) else []
            if command[:2] != [sys.executable, "-m"] or command[2] not in modules or asked["preexec_fn"]:
                super()._execute_child(*given)  # type: ignore[misc]
                return
            request = {
                "module": command[2],
                "arguments": command[3:],
                "environment": dict(os.environ if asked["env"] is None else asked["env"]),
                "folder": str(Path(asked["cwd"] or Path.cwd()).absolute()),
                "session": asked["start_new_session"],
                "parent": os.getpid(),
            }
            ends = ("p2cread", "c2pwrite", "errwrite")
            files = [own if asked[end] == -1 else asked[end] for own, end in enumerate(ends)]
            self.pid = fork(request, files)
            self._child_created = True
            pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(asked[pipe] for pipe in pipes))  # type: ignore[attr-defined]

    return Popen


class Forks:
    """The process that is forked. `modules`: what may be run. `imports`: what is imported first."""

    def __init__(self, modules: list[str], imports: list[str], environment: dict[str, str]) -> None:
        self.asking, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(theirs.fileno()), ",".join(modules), ",".join(imports)]
        own = {name: value for name, value in environment.items() if name != "PYTHONPATH"}  # each fork has another
        self.process = subprocess.Popen(command, env=own | ALONE, pass_fds=[theirs.fileno()])
        theirs.close()
        self.Popen = popen(modules, self.fork)

    def fork(self, request: Request, files: list[int]) -> int:
        """A child of this process, though forked by another: it is orphaned at once, and given to us."""
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        assert prctl(SUBREAPER, 1, 0, 0, 0) == 0
        try:
            socket.send_fds(self.asking, [json.dumps(request).encode()], files)
            answer = self.asking.recv(64)
        finally:
            prctl(SUBREAPER, 0, 0, 0, 0)
        assert answer, "the process that is forked has ended"
        return int(answer)

    def close(self) -> None:
        self.asking.close()
        self.process.wait(30)


def serve(asking: socket.socket) -> Request | None:
    """Make what is asked for. Returns the request in each child, and None here, when who asks has gone."""
    while True:
        data, files, _, _ = socket.recv_fds(asking, LARGEST, 3)
        if not data:
            return None
        assert len(list(Path("/proc/self/task").iterdir())) == 1, "an import has started a thread"
        if child := os.fork():
            os.waitpid(child, 0)
            for file in files:
                os.close(file)
        elif os.fork():
            os._exit(0)  # so that the other is an orphan
        else:
            request: Request = json.loads(data)
            while os.getppid() != request["parent"]:
                time.sleep(0.001)
            become(request, files)
            asking.send(str(os.getpid()).encode())
            asking.close()
            return request


def fork_again(request: Request, files: list[int]) -> int:
    """A fork of this process, itself one: the worker of MLflow's server."""
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "there is a thread"
    if child := os.fork():
        return child
    become(request, [os.dup(file) for file in files])
    run(request)


def become(request: Request, files: list[int]) -> None:
    """Be as if Python had been started so."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:] = [request["folder"], *dict.fromkeys(path + sys.path[1:])]


def run(request: Request) -> NoReturn:
    """Run the module and end, without taking apart what is shared, which would be to copy it first."""
    sys.argv = [request["module"], *request["arguments"]]
    code = 0
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(file: str, modules: str, imports: str) -> None:
    asking = socket.socket(fileno=int(file))
    asking.set_inheritable(False)
    for name in imports.split(","):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork's collections leave what it shares alone
    request = serve(asking)
    if request:
        subprocess.Popen = popen(modules.split(","), fork_again)  # type: ignore[misc]
        run(request)


if __name__ == "__main__":
    main(*sys.argv[1:])
