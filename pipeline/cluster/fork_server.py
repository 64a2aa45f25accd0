"""Ray's workers as forks of one process of their node, which has imported once what each of them needs.

Ray starts Python twice for a worker (`setup_worker.py` becomes `default_worker.py`), and each imports ray, torch,
DeepSpeed and pandas anew: five seconds of a processor, for ranks, actors and tasks of each stage. In a cluster that
ends with the run this file is what Ray starts. It hands arguments, environment and open files of the worker to the
server and ends. The server, begun before Ray, imports while Ray starts; a fork of it is there in milliseconds, and
shares its memory. Where no server answers, or more is asked of a worker than an environment, this becomes Ray's own
program.

Ray reads a worker's environment as it is imported (2.60), its job's number too: a fork of the server imports it once a
job's first worker has told that. A server has one thread, for a fork has no more. Beside a GPU there is none, whose
driver a fork cannot use once anything has asked it what there is.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ADDRESS = "LDM_FORK_SERVER"  # environment: the server's socket
MODULES = (  # in the order of need; by name, for they are of rooms above this one
    "threadpoolctl",
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
)
RAY = "RAY_"  # environment: what is Ray's, and the same for all workers of a job
TRAIN = "RAY_TRAIN_"  # but this: a rank has what its driver has, and Ray Train reads it when it is needed
GPUS = ("nvidia[0-9]*", "nvhost-gpu", "nvgpu", "dxg", "kfd")  # below /dev
LARGEST = 2**20  # bytes of a request
PATIENCE = 2.0  # seconds in which who has connected must have asked
OOM = Path("/proc/self/oom_score_adj")  # Ray raises it for who becomes a worker, so that the kernel kills these first


def _is_us(connected: socket.socket) -> bool:
    """Whether the process at the other end is this user's: Ray makes folders that everybody may write into."""
    _, user, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(user == os.getuid())


# ---- what Ray starts for a worker ------------------------------------------------------------------------------------


def ask(arguments: list[str]) -> bool:
    """Have the server make the worker that Ray's `setup_worker.py` gets these arguments for; False if it did not."""
    environment, words = dict(os.environ), []
    for word in arguments:
        key, _, value = word.partition("=")
        if key == "--serialized-runtime-env-context":
            context = json.loads(value or "{}")
            environment |= {name: os.path.expandvars(text) for name, text in context.pop("env_vars", {}).items()}
            if context.pop("py_executable", sys.executable) != sys.executable or any(context.values()):
                return False
        elif key == "--worker-type" and value != "WORKER":
            return False  # it spills or restores, for no job
        elif key != "--language":
            words.append(word)
        elif value != "PYTHON":
            return False
    while words and words[0] in ("-s", "-S"):  # of Python itself; the server has them from who started it
        words.pop(0)
    worker = {
        "arguments": words,
        "environment": environment,
        "folder": str(Path.cwd()),
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "oom": OOM.read_text(),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        try:
            server.connect(os.environ.get(ADDRESS, ""))
            if not _is_us(server):
                return False
            socket.send_fds(server, [json.dumps(worker).encode()], [0, 1, 2])
            return bool(server.recv(1))  # nothing: it ended before it was the worker
        except OSError:  # there is no server, or the environment is larger than a packet
            return False


# ---- the server ------------------------------------------------------------------------------------------------------


def start(folder: str, environment: MutableMapping[str, str]) -> Any:
    """A server whose socket lies in `folder`; None where it cannot be of use.

    environment: that of the processes which start Ray; gets the server's address. The server ends with this process, or
    by `stop`.
    """
    import subprocess

    environment.pop(ADDRESS, None)
    if sys.platform != "linux" or any(any(Path("/dev").glob(name)) for name in GPUS):
        return None
    environment[ADDRESS] = str(Path(folder) / "fork")
    here = Path(__file__).resolve()
    flags = [f"-{flag}" for flag, on in (("s", sys.flags.no_user_site), ("S", sys.flags.no_site)) if on]
    own = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # no second thread
    own |= {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
    own |= {"DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore::FutureWarning"}
    path = os.pathsep.join([str(here.parents[2]), *filter(None, [environment.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, *flags, str(here), "serve", environment[ADDRESS]],
        env={**environment, **own, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # DeepSpeed says what it found
        start_new_session=True,  # Ctrl-C is the driver's
    )


def stop(server: Any) -> None:
    """End a server and the workers that are left of it, once Ray is down: some it did not know yet."""
    import psutil

    try:
        process = psutil.Process(server.pid)
        process.suspend()  # no fork between this look and its end
        for one in process.children():
            with suppress(psutil.NoSuchProcess):
                one.suspend()
        for worker in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                worker.kill()
    except psutil.NoSuchProcess:
        pass  # it ended by itself, and so do its workers, with Ray
    server.kill()
    server.wait()
    server.stdin.close()


Asked = tuple[socket.socket, dict[str, Any], list[int]]  # who asked, for what worker, with which files


def serve(address: str) -> Asked | None:
    """Import what workers need, and make those that are asked for, also between two imports. Returns in each worker
    what was asked, and in the server None, as stdin ends.

    What has imported ray is a fork of this process, for the workers of one job. A request of another it hands back.
    """
    del sys.path[0]  # the folder of this file
    Path(address).unlink(missing_ok=True)  # of one before it, where Ray is started again
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(128)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a worker that has ended
    ahead, back, alone = list(MODULES), None, False
    while asked := back or _next(listener, ahead):
        if os.fork() == 0:  # the job's first worker does not wait for ray
            listener.close()
            return asked
        if alone:
            _close(*asked)
            back = None
            continue
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = _settings(asked[1]["environment"])
        _close(*asked)
        if os.fork() == 0:
            here.close()
            return _of_one_job(settings, listener, ahead, there)
        there.close()
        with here:
            message, files, _, _ = socket.recv_fds(here, LARGEST, 4)
        back = (socket.socket(fileno=files[0]), json.loads(message), files[1:]) if files else None
        alone = not back  # it cannot be, and is not tried for each worker anew
    return None


def _of_one_job(
    settings: dict[str, str], listener: socket.socket, ahead: list[str], above: socket.socket
) -> Asked | None:
    """Be the server of workers with these settings of Ray, which it reads as it is imported."""
    for name in _settings(os.environ):
        del os.environ[name]
    os.environ.update(settings)
    ahead = ["ray", *ahead, f"{__name__}:import_ray_train"]
    while asked := _next(listener, ahead):
        if _settings(asked[1]["environment"]) != settings:
            socket.send_fds(above, [json.dumps(asked[1]).encode()], [asked[0].fileno(), *asked[2]])
            return None
        if os.fork() == 0:
            listener.close()
            above.close()
            return asked
        _close(*asked)
    return None


def _next(listener: socket.socket, ahead: list[str]) -> Asked | None:
    """The next request; until then imports what is ahead, which gets shorter. None as stdin ends."""
    import gc
    import pkgutil
    import select

    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [], 0 if ahead else None)
        if sys.stdin in ready:
            return None
        if len(list(Path("/proc/self/task").iterdir())) > 1:
            print("fork server: an import has started a thread; workers import for themselves", file=sys.stderr)
            return None
        if ready:
            if asked := _asked(listener):
                return asked
        elif ahead:
            name = ahead.pop(0)
            try:
                found = pkgutil.resolve_name(name)
                if callable(found):
                    found()
            except Exception as error:
                print(f"fork server: {name} cannot be imported: {error}", file=sys.stderr)  # who needs it says more
            gc.freeze()  # a worker's collections leave what it shares alone, and shared


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What Ray reads of an environment as it is imported."""
    return {k: v for k, v in environment.items() if k.startswith(RAY) and not k.startswith(TRAIN)}


def import_ray_train() -> None:
    """Import Ray Train without a draw from Ray's source of random IDs: it is seeded by the first, and all forks of who
    drew draw the same (2.60). Ray draws an ID for each class that becomes an actor's, which nobody reads."""
    from ray import actor

    drawn = actor.ActorClassID
    actor.ActorClassID = type("", (), {"from_random": staticmethod(lambda: drawn(os.urandom(drawn.size())))})
    try:
        import ray.train.torch  # noqa: F401
    finally:
        actor.ActorClassID = drawn


def _asked(listener: socket.socket) -> Asked | None:
    """The next request; None if it is none."""
    client, files = listener.accept()[0], list[int]()
    client.settimeout(PATIENCE)
    try:
        request, files, _, _ = socket.recv_fds(client, LARGEST, 3)
        if _is_us(client) and len(files) == 3:
            return client, json.loads(request), files
    except (OSError, ValueError):  # it has gone, or says nothing
        pass
    _close(client, {}, files)
    return None


def _close(client: socket.socket, _: dict[str, Any], files: list[int]) -> None:
    """Have nothing to do with a request any more."""
    client.close()
    for file in files:
        os.close(file)


def become(client: socket.socket, worker: dict[str, Any], files: list[int]) -> None:
    """Be the worker, as if Python had been started for it. Who asked hears of it when nothing is left that may fail.

    It ends as multiprocessing's forks do: to take apart what it shares would be to copy it first, for half a second.
    """
    import atexit
    import runpy
    import threading

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.setpgid(0, 0)  # Ray kills the whole group of a worker that has ended
    os.chdir(worker["folder"])
    os.setpriority(os.PRIO_PROCESS, 0, worker["niceness"])
    resource.setrlimit(resource.RLIMIT_NOFILE, worker["files"])
    OOM.write_text(worker["oom"])
    os.environ.clear()
    os.environ.update(worker["environment"])
    path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.argv = worker["arguments"]
    sys.path[:] = [str(Path(sys.argv[0]).parent), *dict.fromkeys(path + sys.path)]
    threads = int(os.environ.get("OMP_NUM_THREADS", 1))  # libraries read it as they were loaded
    if "threadpoolctl" in sys.modules:
        sys.modules["threadpoolctl"].threadpool_limits(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # of its own; Python's begins anew by itself
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, worker["blocked"])
    client.send(b"+")
    client.close()
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(arguments: list[str]) -> None:
    """`serve SOCKET`, or what Ray gives its own program."""
    if arguments[0] == "serve":
        if asked := serve(arguments[1]):
            become(*asked)
    elif not ask(arguments):
        worker = next(word for word in arguments if word.endswith("default_worker.py"))
        program = str(Path(worker).with_name("setup_worker.py"))
        os.execv(sys.executable, [sys.executable, program, *arguments])  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
