"""Ray inside a Slurm allocation: what `slurm/train_ldm.sh` runs on its nodes, `python -m pipeline.cluster.slurm VERB`.

look    on every node: its address, and the blocks of ports that are free there
plan    on the first node: one block for all of them, from what they said; printed as shell variables
hold    on every node: starts Ray and keeps it, through Slurm's SIGTERM, until SIGUSR2; leaves nothing behind

What is a notice and what follows is the script's business; how ranks save and stop, cluster.py's and loop.py's.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.cluster import fork_server
from pipeline.cluster.folders import Claim, sweep
from pipeline.cluster.joining import ray_program
from pipeline.cluster.reach import reach
from pipeline.errors import UserError

PORTS = (20000, 32000)  # below those that Linux gives to outgoing connections (from 32768)
BLOCK = 7  # ports of a job, in the order of `ray_start`
CANDIDATES = 20  # blocks that are looked at, from the one that the job's number names
STORE = 200 << 20  # bytes of Ray's object store: results are small, shards and latents travel by the file system
LONGEST = 30  # characters of the temporary folder: Ray's socket paths in it end at 107
POLL = 1.0  # seconds between two looks at what cannot notify
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


# ---- before Ray starts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """What a node says of itself: Slurm's name for it, its address, the first ports of its free blocks."""

    name: str
    address: str
    free: tuple[int, ...]

    def __str__(self) -> str:
        return f"node {self.name} {self.address} {','.join(map(str, self.free))}"

    @classmethod
    def parse(cls, line: str) -> Node | None:
        """The node of a line that `str` wrote; None for another line (a module's greeting, say)."""
        found = re.fullmatch(r"node (\S+) (\S+) ([\d,]*)", line.strip())
        return cls(found[1], found[2], tuple(map(int, found[3].split(",")))) if found and found[3] else None


def look(environment: Mapping[str, str]) -> Node:
    """This node, seen from inside a step of the job."""
    blocks = candidates(int(environment["SLURM_JOB_ID"]), environment.get("LDM_PORTS", ""))
    free = tuple(block for block in blocks if all(port_is_free(block + i) for i in range(BLOCK)))
    return Node(environment["SLURMD_NODENAME"], address(environment.get("LDM_INTERFACE", "")), free)


def candidates(job: int, ports: str = "") -> list[int]:
    """First ports of the blocks that a job may take. Those of two jobs whose numbers are near are all different: the
    jobs may begin on a node at the same moment, and both find the same blocks free.

    ports: FIRST-LAST, where a site leaves a range open (LDM_PORTS).
    """
    first, last = PORTS
    if ports:
        found = re.fullmatch(r"(\d+)-(\d+)", ports)
        if not found or int(found[2]) - int(found[1]) < BLOCK:
            raise UserError(f"LDM_PORTS: {ports!r}; expected FIRST-LAST with {BLOCK} ports at least, as 20000-32000")
        first, last = int(found[1]), int(found[2])
    blocks = (last - first) // BLOCK
    count = min(CANDIDATES, blocks)
    begin = job * count + job // (blocks // count)  # once round, one further: a small range does not begin at its first
    return [first + (begin + i) % blocks * BLOCK for i in range(count)]


def port_is_free(port: int) -> bool:
    """Whether nobody listens on a TCP port of this machine, at any address."""
    with socket.socket() as probe:  # without SO_REUSEADDR: one that was just given up counts as taken
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def address(interface: str = "") -> str:
    """The IPv4 address that other nodes reach this one at: of `interface`, else of the host's name, else the first."""
    import psutil

    known = {
        name: [entry.address for entry in entries if entry.family == socket.AF_INET]
        for name, entries in psutil.net_if_addrs().items()
    }
    if interface:
        if not known.get(interface):
            raise UserError(f"LDM_INTERFACE: {interface} has no IPv4 address here; there are {', '.join(known)}")
        return str(known[interface][0])
    outer = [found for addresses in known.values() for found in addresses if not found.startswith("127.")]
    with suppress(OSError):
        for found in socket.gethostbyname_ex(socket.gethostname())[2]:
            if found in outer:  # a name may lead to 127.0.1.1
                return str(found)
    return str(outer[0]) if outer else "127.0.0.1"


def interface_of(own: str) -> str:
    """The interface that has an IPv4 address."""
    import psutil

    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in entries):
            return str(name)
    raise UserError(f"{own}: no interface of {socket.gethostname()} has this address")


def plan(lines: Sequence[str], expected: Sequence[str]) -> dict[str, str]:
    """From what `look` printed on all nodes: the head's address, a block that is free everywhere, all addresses.

    expected: the nodes of the allocation, the head first. UserError names those that did not answer.
    """
    nodes = {node.name: node for node in map(Node.parse, lines) if node}
    if missing := [name for name in expected if name not in nodes]:
        raise UserError(
            f"{len(missing)} of {len(expected)} nodes did not answer or have no free ports: {', '.join(missing)}; "
            "their words are above; exclude them (sbatch --exclude), or give other ports (LDM_PORTS)"
        )
    head = nodes[expected[0]]
    everywhere = [block for block in head.free if all(block in node.free for node in nodes.values())]
    if not everywhere:
        raise UserError(f"no block of {BLOCK} ports is free on all {len(expected)} nodes; give other ports (LDM_PORTS)")
    return {
        "LDM_BASE_PORT": str(everywhere[0]),
        "RAY_ADDRESS": f"{head.address}:{everywhere[0]}",
        "LDM_RAY_NODES": " ".join(f"{name}={nodes[name].address}" for name in expected),
    }


# ---- Ray on one node -------------------------------------------------------------------------------------------------


def ray_start(environment: Mapping[str, str], own: str) -> list[str]:
    """The command that starts this node's part of the Ray cluster, with what the allocation has on this node."""
    base, head = int(environment["LDM_BASE_PORT"]), environment["RAY_ADDRESS"]
    cpus = environment.get("SLURM_CPUS_ON_NODE") or environment.get("SLURM_CPUS_PER_TASK", "1")
    start = f"from {ray_program.__module__} import ray_program; ray_program()"
    command = [sys.executable, "-c", start, "start", "--block", "--disable-usage-stats"]
    if own == head.rpartition(":")[0]:
        command += ["--head", f"--port={base}", "--include-dashboard=false", "--no-monitor"]
    else:
        command += [f"--address={head}"]
    return [
        *command,
        f"--node-ip-address={own}",
        f"--node-manager-port={base + 1}",
        f"--object-manager-port={base + 2}",
        f"--dashboard-agent-listen-port={base + 3}",
        f"--dashboard-agent-grpc-port={base + 4}",
        f"--runtime-env-agent-port={base + 5}",
        f"--metrics-export-port={base + 6}",
        "--include-log-monitor=false",  # nobody reads workers' logs at the driver
        "--min-worker-port=0",  # workers take what the kernel gives: as many ports as processes
        "--max-worker-port=0",
        f"--num-cpus={int(cpus)}",
        f"--num-gpus={gpus(environment)}",
        f"--object-store-memory={STORE}",
    ]


def gpus(environment: Mapping[str, str]) -> int:
    """GPUs that Slurm gave the job on this node."""
    given = environment.get("SLURM_GPUS_ON_NODE")
    if given is None:
        given = str(len([name for name in environment.get("SLURM_JOB_GPUS", "").split(",") if name]))
    return int(given)


def hold(environment: Mapping[str, str]) -> int:
    """Start Ray on this node and keep it until SIGUSR2; then kill all that came of it and remove its folder.

    Slurm sends SIGTERM to every process of a step when a job is cancelled or is to make room, long before SIGKILL.
    Ray's processes get it blocked, so that the ranks can save in the time between; this one leaves a mark (`notice`)
    that the script sees. Returns 0, or 1 if Ray ended by itself.
    """
    signals = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # inherited by all that starts here; read by sigtimedwait
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the script has it ignored up to here
    folder = Path(environment["RAY_TMPDIR"])
    if len(str(folder)) > LONGEST:
        raise UserError(f"LDM_LOCAL: {folder} has over {LONGEST} characters, too many for the sockets of Ray in it")
    sweep(folder.parent.glob("ldm-job-*"), folder)
    folder.mkdir(mode=0o700)
    with Claim(folder):
        own = address(environment.get("LDM_INTERFACE", ""))
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans become children of this process
        (folder / "tmp").mkdir()
        variables = {
            "GLOO_SOCKET_IFNAME": interface_of(own),
            "NCCL_SOCKET_IFNAME": interface_of(own),
            "RAY_worker_register_timeout_seconds": environment.get("LDM_JOIN_DEADLINE", "300"),
            **environment,
            "TMPDIR": str(folder / "tmp"),
        }
        try:
            return _keep(ray_start(environment, own), variables, signals, folder)
        finally:
            kill_descendants()
            shutil.rmtree(folder, ignore_errors=True)  # Ray's logs and sockets; nothing of ours


def _keep(command: list[str], variables: dict[str, str], signals: set[signal.Signals], folder: Path) -> int:
    """Run `ray start` until SIGUSR2 (0); again where it ends by itself, but for a head that others know (1).

    It may end as it starts: Ray gives its agents 15 s to come up, and a node that joins 30 s to its head.
    """
    begun, limit = time.monotonic(), float(variables["RAY_worker_register_timeout_seconds"])
    while True:
        forks = fork_server.start(str(folder), variables)
        ray = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL)
        while ray.poll() is None:
            if not _go_on(signals, folder, variables["RAY_ADDRESS"]):
                return 0
        if forks:
            fork_server.stop(forks)
        print(f"{variables['SLURMD_NODENAME']}: Ray ended by itself (exit code {ray.returncode})", flush=True)
        if "--head" in command and time.monotonic() - begun > limit:
            return 1
        kill_descendants()
        if not _go_on(signals, folder, variables["RAY_ADDRESS"]):
            return 0


def _go_on(signals: set[signal.Signals], folder: Path, head: str) -> bool:
    """Wait a moment for a signal. False for SIGUSR2, the script's word to end, and where Slurm ends the step after the
    head's node, and with it the script, was lost: nobody is left to say it, and SIGKILL would leave the folder."""
    caught = signal.sigtimedwait(signals, POLL)
    if caught and caught.si_signo == signal.SIGTERM:
        (folder / "notice").touch()
    if caught and caught.si_signo == signal.SIGUSR2:
        return False
    host, port = head.rsplit(":", 1)
    return not (folder / "notice").exists() or not reach([("the head", host, int(port))])


def kill_descendants() -> None:
    """SIGKILL everything that this process started, and what that started, until nothing is left."""
    import psutil

    while children := psutil.Process().children(recursive=True):
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, POLL)


def main(arguments: Sequence[str]) -> int:
    """The verb's exit code; a mistake is one line and 2."""
    try:
        match list(arguments):
            case ["look"]:
                print(look(os.environ), flush=True)
            case ["plan", *nodes]:
                for key, value in plan(sys.stdin.readlines(), nodes).items():
                    print(f"export {key}={shlex.quote(value)}")
            case ["hold"]:
                return hold(os.environ)
            case _:
                raise UserError("python -m pipeline.cluster.slurm: expected look, plan NODE... or hold")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
