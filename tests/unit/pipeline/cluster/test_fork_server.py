"""The server that Ray's workers are forked from: asked as Ray asks, for workers that are not Ray's."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.cluster import fork_server

WORKER = """\
import json, os, random, resource, signal, sys
import numpy
json.dump({
    "arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd(), "path": sys.path,
    "imported": [name for name in ("torch", "deepspeed", "pandas", "mlflow", "ray", "sympy") if name in sys.modules],
    "threads": len(os.listdir("/proc/self/task")), "leader": os.getpid() == os.getpgrp(), "parent": os.getppid(),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "default": signal.getsignal(signal.SIGCHLD) == 0,
    "main": __name__, "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "open": sorted(map(int, os.listdir("/proc/self/fd"))),
    "oom": int(open("/proc/self/oom_score_adj").read()), "drawn": [random.random(), numpy.random.rand()],
    "all": "ray.train.torch" in sys.modules,  # the last
    "torch": sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None,
    "ray": (sys.modules["ray"].WorkerID.from_random().hex(), sys.modules["ray"]._config.max_grpc_message_size())
        if "ray" in sys.modules else None,
}, sys.stdout)
sys.exit(3)
"""
RAYS_OWN = "import sys; print(['Ray', *sys.argv[1:]])"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """A server that has imported all, and the environment that leads to it."""
    if not Path("/proc/self/task").exists():
        pytest.skip("Linux only")
    with tempfile.TemporaryDirectory(prefix="ldm-") as folder:
        environment = dict(os.environ)
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(f"{folder}/fork")
        process = fork_server.start(folder, environment)
        if process is None:
            pytest.skip("beside a GPU there is none")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            while probe.connect_ex(f"{folder}/fork"):
                assert process.poll() is None
                time.sleep(0.01)
        yield process, environment
        process.stdin.close()
        assert process.wait(10) == 0  # with those that ask for nothing still connected


@pytest.fixture
def ask(tmp_path: Path, server: Any) -> Callable[..., str]:
    """`ask(*arguments, first=[], **environment)`: what a worker prints that Ray starts so."""
    (tmp_path / "default_worker.py").write_text(WORKER)
    (tmp_path / "setup_worker.py").write_text(RAYS_OWN)

    def run(*arguments: str, first: Sequence[str] = (), **environment: str) -> str:
        command = [sys.executable, fork_server.__file__, *first, str(tmp_path / "default_worker.py"), *arguments]
        asked = subprocess.run(command, env=server[1] | environment, cwd=tmp_path, stdout=subprocess.PIPE, timeout=60)
        assert asked.returncode == 0  # the end of its output is that of the worker, which holds it open
        return asked.stdout.decode()

    return run


def context(**parts: Any) -> str:
    return f"--serialized-runtime-env-context={json.dumps({'command_prefix': [], 'env_vars': {}, **parts})}"


def test_a_worker_is_as_if_python_had_been_started_for_it(tmp_path: Path, server: Any, ask: Callable[..., str]) -> None:
    """All is imported but what nobody needs; environment, folder, signals, threads, random numbers are its own."""
    variables = context(env_vars={"OMP_NUM_THREADS": "2", "OWN": "it's", "PYTHONPATH": str(tmp_path / "first")})
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[0] - 1, limit[1]))
    oom = Path("/proc/self/oom_score_adj").read_text()
    Path("/proc/self/oom_score_adj").write_text(str(int(oom) + 7))  # as Ray does
    found: dict[str, Any] = {"all": False}
    try:
        while not found["all"]:
            found = json.loads(ask("--a=1", variables, "--language=PYTHON", "--b", OUTER="o", OWN="other"))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        with suppress(PermissionError):  # raising it takes no right, lowering it does
            Path("/proc/self/oom_score_adj").write_text(oom)
    assert found["imported"] == ["torch", "deepspeed", "pandas", "ray"]
    assert found["torch"] == 2
    assert found["arguments"] == ["--a=1", "--b"] and found["main"] == "__main__"
    assert {key: found["environment"].get(key) for key in ("OWN", "OUTER")} == {"OWN": "it's", "OUTER": "o"}
    assert "JE_ARROW_MALLOC_CONF" not in found["environment"]  # the server's own
    assert found["folder"] == str(tmp_path) and found["path"][:2] == [str(tmp_path), str(tmp_path / "first")]
    assert not any(path.endswith("cluster") for path in found["path"])
    assert psutil.Process(found["parent"]).ppid() == server[0].pid and found["leader"]
    assert found["blocked"] == [signal.SIGTERM] and found["default"]
    assert found["files"] == [limit[0] - 1, limit[1]] and found["oom"] == int(oom) + 7
    assert found["open"][:3] == [0, 1, 2] and len(found["open"]) <= 4  # and that which lists them
    again = json.loads(ask(OMP_NUM_THREADS="1"))
    assert again["threads"] == again["torch"] == 1
    assert not set(found["drawn"]) & set(again["drawn"]) and found["ray"][0] != again["ray"][0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--language=JAVA",),
        ("--worker-type=SPILL_WORKER",),
        (context(py_executable="uv run"),),
        (context(command_prefix=["cd x"]),),
    ],
    ids=["language", "type", "executable", "prefix"],
)
def test_what_it_does_not_do_is_left_to_ray(ask: Callable[..., str], arguments: tuple[str, ...]) -> None:
    said = ask("--a", *arguments)
    assert said.startswith("['Ray'") and all(repr(word)[1:-1] in said for word in ("--a", *arguments))


def test_flags_of_python_before_the_worker(ask: Callable[..., str]) -> None:
    assert json.loads(ask("--a", first=["-s"]))["arguments"] == ["--a"]


def test_a_worker_that_cannot_be_is_left_to_ray(ask: Callable[..., str]) -> None:
    """Who asks hears nothing until all is done that may fail."""
    assert ask("--a", OMP_NUM_THREADS="4,2").startswith("['Ray'")


def test_who_asks_for_nothing_holds_up_nobody(server: Any, ask: Callable[..., str], monkeypatch: Any) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as idle, socket.socket(idle.family, idle.type) as gone:
        for each in (idle, gone):
            each.connect(server[1][fork_server.ADDRESS])
        socket.send_fds(gone, [b"{"], [0, 0, 0])
        gone.close()
        assert json.loads(ask("--a"))["arguments"] == ["--a"]


def test_another_users_server_is_told_nothing(ask: Callable[..., str], server: Any) -> None:
    if os.getuid() != 0:
        pytest.skip("root only: to be somebody else")
    with (
        tempfile.TemporaryDirectory(prefix="ldm-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bad,
    ):
        Path(folder).chmod(0o777)
        os.seteuid(65534)
        try:
            bad.bind(f"{folder}/fork")
            bad.listen()
        finally:
            os.seteuid(0)
        Path(f"{folder}/fork").chmod(0o777)
        bad.settimeout(20)
        assert ask("--a", **{fork_server.ADDRESS: f"{folder}/fork"}).startswith("['Ray'")
        client, _ = bad.accept()
        assert client.recv(100) == b""


def test_without_a_server_workers_are_started_by_ray(tmp_path: Path, ask: Callable[..., str]) -> None:
    assert ask("--a", **{fork_server.ADDRESS: str(tmp_path / "nowhere")}).startswith("['Ray'")


def test_none_beside_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "GPUS", ("null",))
    environment: dict[str, str] = {}
    assert fork_server.start(str(tmp_path), environment) is None and environment == {}


def test_workers_that_ray_does_not_know_end_with_it(tmp_path: Path) -> None:
    (tmp_path / "default_worker.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    with tempfile.TemporaryDirectory(prefix="ldm-") as folder:
        environment = dict(os.environ)
        server = fork_server.start(folder, environment) or pytest.skip("beside a GPU there is none")
        wait_for(lambda: Path(folder, "fork").exists())
        command = [sys.executable, fork_server.__file__, str(tmp_path / "default_worker.py")]
        asked = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert asked.stdout
        worker = int(asked.stdout.readline())
        assert asked.wait(20) == 0
        fork_server.stop(server)
        wait_for(lambda: not Path(f"/proc/{worker}").exists() or not Path(f"/proc/{worker}/cmdline").read_bytes())
        fork_server.stop(server)  # again does nothing


def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    """Killed, so that nothing is closed in order."""
    start = f"import sys; sys.path.insert(0, {str(Path(fork_server.__file__).parents[2])!r})\n"
    start += "import os; from pipeline.cluster import fork_server\n"
    start += "print(fork_server.start(sys.argv[1], os.environ).pid, flush=True); sys.stdin.read()"
    with tempfile.TemporaryDirectory(prefix="ldm-") as folder:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-c", start, folder], **pipes)
        assert process.stdout
        pid = int(process.stdout.readline() or pytest.skip("beside a GPU there is none"))
        process.kill()
        process.wait()
        wait_for(lambda: not Path(f"/proc/{pid}").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())


def test_what_ray_reads_as_it_is_imported_is_the_workers(ask: Callable[..., str]) -> None:
    """A worker of another job is a fork of its own kind. Settings of Ray Train are read later."""

    def has_ray(**environment: str) -> int:
        while not (found := json.loads(ask(**environment))["ray"]):
            pass
        return int(found[1])

    settings = {"RAY_max_grpc_message_size": "123456789"}
    assert has_ray() != 123456789
    assert json.loads(ask(**settings))["ray"] is None  # the first
    assert has_ray(**settings, RAY_TRAIN_NEW="1") == 123456789
    other = json.loads(ask(**settings, RAY_TRAIN_NEW="2"))
    assert other["ray"][1] == 123456789 and other["environment"]["RAY_TRAIN_NEW"] == "2"
