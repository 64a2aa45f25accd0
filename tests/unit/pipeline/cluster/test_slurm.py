"""What nodes of an allocation say and are told: ports, addresses, the command that starts Ray, what is cleaned."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster import slurm
from pipeline.cluster.slurm import (
    BLOCK,
    CANDIDATES,
    Node,
    candidates,
    gpus,
    plan,
    port_is_free,
    ray_start,
)
from pipeline.errors import UserError
from pipeline.files import SOURCE

ENVIRONMENT = {
    "LDM_BASE_PORT": "20007", "RAY_ADDRESS": "10.0.0.1:20007", "SLURM_CPUS_ON_NODE": "64", "SLURM_GPUS_ON_NODE": "8"
}  # fmt: skip


def test_a_node_is_read_back_from_its_line() -> None:
    node = Node("gpu-17", "10.1.2.3", (20000, 20007))
    assert Node.parse(f"{node}\n") == node
    assert Node.parse("Welcome to the cluster!") is None
    assert Node.parse(str(Node("gpu-17", "10.1.2.3", ()))) is None


def test_jobs_that_are_near_take_other_ports() -> None:
    for job in (1, 1713, 987_654):
        assert len(set(candidates(job))) == CANDIDATES
        near = [block for other in range(job, job + 80) for block in candidates(other)]
        assert len(set(near)) == len(near)  # also of jobs that begin at the same moment, and pass over the same ones
        assert all(block >= 20000 and block + BLOCK <= 32000 for block in candidates(job))
    assert candidates(5, "30000-30014") == [30007, 30000] and candidates(6, "30000-30014") == [30000, 30007]
    for wrong in ("30000", "30000-30003", "a-b"):
        with pytest.raises(UserError, match="LDM_PORTS"):
            candidates(5, wrong)


def test_a_port_is_taken_while_somebody_listens() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert not port_is_free(port)
    assert port_is_free(port)


def test_the_plan_takes_ports_that_are_free_on_all_nodes() -> None:
    lines = [
        "greeting",
        str(Node("b", "10.0.0.2", (20007, 20014))),
        str(Node("a", "10.0.0.1", (20000, 20007, 20014))),
    ]
    assert plan(lines, ["a", "b"]) == {
        "LDM_BASE_PORT": "20007", "RAY_ADDRESS": "10.0.0.1:20007", "LDM_RAY_NODES": "a=10.0.0.1 b=10.0.0.2"
    }  # fmt: skip
    with pytest.raises(UserError, match=r"1 of 3 nodes did not answer.*: c;"):
        plan(lines, ["a", "b", "c"])
    with pytest.raises(UserError, match="no block of 7 ports is free on all 2 nodes"):
        plan([str(Node("a", "10.0.0.1", (20000,))), str(Node("b", "10.0.0.2", (20007,)))], ["a", "b"])


def test_ray_gets_what_the_allocation_has_on_the_node() -> None:
    head, other = ray_start(ENVIRONMENT, "10.0.0.1"), ray_start(ENVIRONMENT, "10.0.0.2")
    assert "--head" in head and "--port=20007" in head and "--address=10.0.0.1:20007" in other
    for command in (head, other):
        assert {"--num-cpus=64", "--num-gpus=8", "--min-worker-port=0"} < set(command)
        ports = [int(word.partition("=")[2]) for word in command if "-port=" in word and not word.endswith("=0")]
        assert len(set(ports)) == len(ports) and set(ports) <= set(range(20007, 20007 + BLOCK))
    assert gpus({"SLURM_JOB_GPUS": "0,3"}) == 2 and gpus({}) == 0


def test_descendants_are_killed_with_those_that_left_the_family(tmp_path: Path) -> None:
    """A grandchild whose parent ended belongs to the holder, and dies with the rest though it blocks SIGTERM."""
    code = f"""
import ctypes, signal, subprocess, sys, time
from pathlib import Path
from pipeline.cluster import slurm
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
ctypes.CDLL(None).prctl(slurm.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
subprocess.run(["sh", "-c", "sleep 1000 & echo $! > {tmp_path}/pid"])
subprocess.Popen(["sleep", "1000"])
slurm.kill_descendants()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=SOURCE, timeout=60)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_verb_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert slurm.main(["what"]) == 2
    assert capsys.readouterr().err.startswith("error: python -m pipeline.cluster.slurm: expected")


def test_a_notice_ends_with_the_code_that_says_again(tmp_path: Path) -> None:
    """SIGUSR1: 75, SIGTERM: 130, wherever they find the command."""
    code = "import time\nfrom jobs.cli import main\nimport click\n"
    code += "main(click.Command('x', callback=lambda: (print('here', flush=True), time.sleep(60))))"
    for number, expected in ((signal.SIGUSR1, os.EX_TEMPFAIL), (signal.SIGTERM, 130)):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=SOURCE)
        assert process.stdout and process.stdout.readline() == b"here\n"
        process.send_signal(number)
        assert process.wait(60) == expected
        process.stdout.close()
