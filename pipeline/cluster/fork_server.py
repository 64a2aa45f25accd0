"""Ray's workers as forks of one process of their node, which has imported once what each of them needs.

Ray starts Python twice for a worker (`setup_worker.py` becomes `default_worker.py`), and each imports ray, torch,
DeepSpeed and pandas anew: five seconds of a processor, for ranks, actors and tasks of each stage. In a cluster that
ends with the run this file is what Ray starts. It hands arguments, environment and open files of the worker to the
server and ends. The server, begun before Ray, imports while Ray starts; a fork of it is there in milliseconds, and
shares its memory. Where no server answers, or more is asked of a worker than an environment, this becomes Ray's own
program.

The server imports no ray, which reads a worker's environment as it is imported (2.60). It has one thread, for a fork
has no more. Beside a GPU there is none, whose driver a fork cannot use once anything has asked it what there is.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

ADDRESS = "LDM_FORK_SERVER"  # environment: the server's socket
MODULES = (  # in the order of need; by name, for they are of rooms above this one
    "PIL.Image",
    "pipeline.stages.ingest",
    "torch",
    "pipeline.training.initialise:import_deepspeed",
    "pandas",  # this and the next for Ray Train
    "pyarrow.dataset",
    "pipeline.tasks.autoencoder",
    "pipeline.tasks.diffusion",
    "pipeline.tasks.encoding",
    "pipeline.training.loop",
    "threadpoolctl",
)
GPUS = ("nvidia[0-9]*", "kfd")  # below /dev
LARGEST = 2**20  # bytes of a request


# ---- what Ray starts for a worker ------------------------------------------------------------------------------------


def ask(arguments: list[str]) -> bool:
    """Have the server make the worker that Ray's `setup_worker.py` gets these arguments for; False if it did not."""
    environment, words = dict(os.environ), []
    for word in arguments:
        key, _, value = word.partition("=")
        if key == "--serialized-runtime-env-context":
            context = json.loads(value or "{}")
            environment |= context.pop("env_vars", {})
            if context.pop("py_executable", sys.executable) != sys.executable or any(context.values()):
                return False
        elif key != "--language":
            words.append(word)
        elif value != "PYTHON":
            return False
    worker = {
        "arguments": words,
        "environment": environment,
        "folder": str(Path.cwd()),
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        try:
            server.connect(os.environ[ADDRESS])
            socket.send_fds(server, [json.dumps(worker).encode()], [0, 1, 2])
            return bool(server.recv(1))
        except OSError:  # it has ended, or the environment is larger than a packet
            return False


# ---- the server ------------------------------------------------------------------------------------------------------


def start(folder: str, environment: MutableMapping[str, str]) -> Any:
    """A server whose socket lies in `folder`, which nobody else may enter; None where it cannot be of use.

    environment: that of the processes which start Ray; gets the server's address. The server ends with this process, or
    as its stdin is closed.
    """
    import subprocess

    if sys.platform != "linux" or any(any(Path("/dev").glob(name)) for name in GPUS):
        return None
    environment[ADDRESS] = str(Path(folder) / "fork")
    here = Path(__file__).resolve()
    own = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}  # no second thread
    own |= {"DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore::FutureWarning"}
    path = os.pathsep.join([str(here.parents[2]), *filter(None, [environment.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, str(here), "serve", environment[ADDRESS]],
        env={**environment, **own, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # DeepSpeed says what it found
        start_new_session=True,  # Ctrl-C is the driver's
    )


def serve(address: str) -> None:
    """Import what workers need, and make those that are asked for, also between two imports; until stdin ends."""
    import gc
    import pkgutil
    import select

    del sys.path[0]  # the folder of this file
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    Path(address).unlink(missing_ok=True)  # of one before it, where Ray is started again
    listener.bind(address)
    listener.listen(128)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a worker that has ended
    ahead = list(MODULES)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [], 0 if ahead else None)
        if sys.stdin in ready:
            return
        if ready:
            _make(listener)
        elif ahead:
            found = pkgutil.resolve_name(ahead.pop(0))
            if callable(found):
                found()
            gc.freeze()  # a worker's collections leave what it shares alone, and shared


def _make(listener: socket.socket) -> None:
    """Fork the worker that the next request is for; the answer is a byte."""
    client, _ = listener.accept()
    with client:
        request, files, _, _ = socket.recv_fds(client, LARGEST, 3)
        if len(files) != 3 or len(list(Path("/proc/self/task").iterdir())) > 1:
            return
        if os.fork() == 0:
            client.close()
            listener.close()
            _become(json.loads(request), files)
        client.send(b"+")
    for file in files:
        os.close(file)


def _become(worker: dict[str, Any], files: list[int]) -> None:
    """Be the worker, as if Python had been started for it; does not return."""
    import runpy
    import traceback

    code = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.setpgid(0, 0)  # Ray kills the whole group of a worker that has ended
        os.chdir(worker["folder"])
        os.setpriority(os.PRIO_PROCESS, 0, worker["niceness"])
        os.environ.clear()
        os.environ.update(worker["environment"])
        path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
        sys.argv = worker["arguments"]
        sys.path[:] = [str(Path(sys.argv[0]).parent), *dict.fromkeys(path + sys.path)]
        if "threadpoolctl" in sys.modules:  # of libraries that read the number as they were loaded
            sys.modules["threadpoolctl"].threadpool_limits(int(os.environ.get("OMP_NUM_THREADS", 1)))
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()  # of its own; Python's begins anew by itself
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, worker["blocked"])
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # nothing of the server's runs at its end


def main(arguments: list[str]) -> None:
    """`serve SOCKET`, or what Ray gives its own program."""
    if arguments[0] == "serve":
        serve(arguments[1])
    elif not ask(arguments):
        worker = next(word for word in arguments if word.endswith("default_worker.py"))
        program = str(Path(worker).with_name("setup_worker.py"))
        os.execv(sys.executable, [sys.executable, program, *arguments])  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
