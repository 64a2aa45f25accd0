"""A real Slurm cluster of three nodes on this machine for the tests of this folder (`slurmlab`), and jobs on it.

After each test nothing of the jobs may be left on any node: no process, no listening port, no file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fault_table import pytest_runtest_logreport as pytest_runtest_logreport
from tests.fault_table import row as row
from tests.fault_table import write_section

ROOT = Path(__file__).parents[2]
LAB = Path(__file__).parent / "slurmlab"
NODES = ("node1", "node2", "node3")
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "nsenter", "unshare", "setpriv")
OURS = ("slurmlab", "bash", "sleep", "slurmd", "slurmstepd", "munged", "setpriv", "ps")  # what a node without jobs runs
WAIT = 900.0  # seconds for anything: the machine may be busy; what is awaited is a state, not a time


@dataclass
class Lab:
    """The cluster. `exec` runs a command on a node (`ctl`: where jobs are submitted)."""

    folder: Path
    jobs: list[Job] = field(default_factory=list)

    def slurmlab(self, *command: str) -> str:
        environment = {**os.environ, "SLURMLAB_DIR": str(self.folder)}
        done = subprocess.run([LAB, *command], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def exec(self, *command: str, node: str = "ctl") -> str:
        return self.slurmlab("exec", node, *command)

    def wait_idle(self, node: str) -> None:
        """Until a node that was away is there again, without a job. Asks for all nodes: of one alone Slurm may tell a
        state of long ago."""
        deadline = time.monotonic() + WAIT
        while f"{node} idle" not in (state := self.exec("sinfo", "-hN", "-p", "main", "-o", "%n %T")).splitlines():
            assert time.monotonic() < deadline, f"{node} does not come back: {state}"
            time.sleep(0.5)

    def sbatch(
        self,
        name: str,
        *words: str,
        options: tuple[str, ...] = (),
        script: str = "train_ldm.sh",
        config: str = "small.yaml",
        **environment: str,
    ) -> Job:
        """Submit slurm/<script> with shared/<config>; `words` are what follows. Log and root are in shared/<name>."""
        folder = self.folder / "shared" / name
        folder.mkdir(exist_ok=True)
        variables = {
            "LDM_HOME": str(ROOT), "LDM_SITE": str(self.folder / "shared" / "site.sh"), "LDM_VERB": "diffusion",
            "LDM_DRAIN_POLL": "2", "LDM_JOIN_DEADLINE": str(int(WAIT)), "OMP_NUM_THREADS": "1", "LDM_PREFLIGHT": "0",
            **environment,
        }  # fmt: skip
        settings = [f"{key}={value}" for key, value in variables.items()]
        command = ["env", *settings, "sbatch", "--parsable", f"--chdir={folder}", "--mem=1000", *options]
        what = [str(ROOT / "slurm" / script), str(self.folder / "shared" / config), f"run.root={folder / 'runs'}"]
        job = Job(self, self.exec(*command, *what, *words).strip(), folder)
        self.jobs.append(job)
        return job


@dataclass
class Job:
    """A job of the lab and what it leaves."""

    lab: Lab
    id: str
    folder: Path

    def facts(self) -> dict[str, str]:
        """What `scontrol show job` says."""
        return dict(re.findall(r"(\w+)=(\S*)", self.lab.exec("scontrol", "--oneliner", "show", "job", self.id)))

    @property
    def state(self) -> str:
        return self.facts()["JobState"]

    def nodes(self) -> list[str]:
        """Of its allocation, the one with the batch script first."""
        return self.lab.exec("scontrol", "show", "hostnames", self.facts()["NodeList"]).split()

    @property
    def log(self) -> str:
        path = self.folder / f"ldm-{self.id}.out"
        return path.read_text() if path.exists() else ""

    def told(self) -> str:
        """The log and Ray's words, for a message."""
        ray = self.folder / f"ray-{self.id}.out"
        return f"{self.facts()}\n{self.log[-4000:]}\n-- Ray:\n{ray.read_text()[-3000:] if ray.exists() else ''}"

    def wait(self, what: Callable[[], Any], name: str) -> None:
        """Until `what()`; fails as soon as the job has ended without."""
        since = time.monotonic()
        while not what():
            ended = self.state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
            if (ended and not what()) or time.monotonic() - since > WAIT:
                pytest.fail(f"job {self.id}: waited {time.monotonic() - since:.0f} s for {name}\n{self.told()}")
            time.sleep(0.5)

    def wait_step(self, stage: str, step: int) -> None:
        """Until the stage has logged a step."""
        self.wait(lambda: max(curve(self.folder / "runs", stage), default=0) >= step, f"step {step} of {stage}")

    def finish(self) -> None:
        """Until it is done, with exit code 0."""
        self.wait(lambda: self.state == "COMPLETED", "its end")
        assert self.facts()["ExitCode"] == "0:0", self.told()


def events(root: Path, stage: str, fingerprint: str = "*") -> Iterator[dict[str, Any]]:
    """The lines of a stage's spools, in order."""
    for path in sorted(root.glob(f"artifacts/{stage}/{fingerprint}/work/spool/*.jsonl")):
        for line in path.read_text().splitlines():
            if line.endswith("}"):
                yield json.loads(line)


def curve(root: Path, stage: str) -> dict[int, set[float]]:
    """Step -> the training losses that were logged for it, by all attempts."""
    found: dict[int, set[float]] = {}
    for event in events(root, stage):
        if event["kind"] == "metrics" and f"{stage}/train_loss" in event["values"]:
            found.setdefault(event["step"], set()).add(event["values"][f"{stage}/train_loss"])
    return found


def kept(root: Path, stage: str) -> list[int]:
    """Positions (samples) of the whole checkpoints of a stage."""
    from pipeline.training.checkpoint import listing

    (folder,) = root.glob(f"artifacts/{stage}/*/work/checkpoints")
    return sorted(saved.position for saved in listing(folder) if (folder / saved.name / "manifest.json").exists())


BATCH, EVERY, STEPS = 32, 50, {"autoencoder": 200, "diffusion": 400}
TWO = ("--nodes=2", "--cpus-per-task=1")  # a rank on each of two nodes
ONE = ("--nodes=1", "--cpus-per-task=2")  # both ranks on one
CONFIG = f"""\
run: {{name: small}}
data: {{source: {{kind: digits}}, size: 16, channels: 1, shard_size: 400}}
autoencoder:
  model: {{kind: kl, width: 8, multipliers: [1, 2], blocks: 1, latent_channels: 2, groups: 4, attention: false}}
  training: {{precision: fp32,
             batch_size: {BATCH}, steps: {STEPS["autoencoder"]}, half_lives: [200], log_every: 1, save_every: {EVERY},
             validate_every: 200, preview_every: 200}}
diffusion:
  backbone: {{kind: dit, width: 32, depth: 2, heads: 2, patch: 2}}
  training: {{precision: fp32,
             batch_size: {BATCH}, steps: {STEPS["diffusion"]}, half_lives: [200], log_every: 1, save_every: {EVERY},
             validate_every: 400, preview_every: 400}}
cluster: {{workers: 2, threads: 1}}
"""


def pytest_sessionfinish(session: pytest.Session) -> None:
    write_section("On Slurm", ABOUT)


ABOUT = f"""\
Written by `make test-cluster`, on slurmctld and three slurmd in network namespaces of one machine; a test of the last
column alone: `python -m pytest -m cluster tests/cluster -k TEST`. The runs have {STEPS["diffusion"]} steps
({STEPS["autoencoder"]} of the autoencoder, where that is disturbed) and a checkpoint every {EVERY}.
"""


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The cluster, and after it nothing of it."""
    if os.getuid() != 0:
        pytest.skip("a Slurm cluster of namespaces needs root")
    if missing := [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]:
        pytest.skip(f"{', '.join(missing)} not found; `make test-cluster` installs Slurm")
    if subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make namespaces")
    lab = Lab(tmp_path_factory.mktemp("slurm") / "lab")
    shares = {str(path) for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix)) if path.is_relative_to("/tmp")}
    options = [word for path in sorted(shares) for word in ("--share", path)]
    for line in ("KillWait=60", "SrunPortRange=61000-61999"):  # srun's, where a firewall lets through what is listed
        options += ["--conf", line]
    lab.slurmlab("up", "3", "--owner", str(os.getpid()), "--grace", "120", *options)
    try:
        (lab.folder / "shared" / "site.sh").write_text(f"PATH={Path(sys.prefix) / 'bin'}:$PATH\n")
        (lab.folder / "shared" / "small.yaml").write_text(CONFIG)
        yield lab
    finally:
        lab.slurmlab("down")
    assert not lab.folder.exists()
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(lab.folder) in str(p.info["cmdline"])]
    assert not left


@pytest.fixture(scope="session")
def whole(lab: Lab) -> Job:
    """A job that nobody disturbed."""
    job = lab.sbatch("whole", options=TWO)
    job.finish()
    return job


@pytest.fixture(autouse=True)
def nothing_left(lab: Lab) -> Iterator[None]:
    """No job, and on no node a process, a port or a file of one."""
    yield
    active = [job for job in lab.jobs if job.state in ("RUNNING", "PENDING", "COMPLETING", "SUSPENDED")]
    for job in active:  # of a test that failed
        lab.exec("scancel", job.id)
    deadline = time.monotonic() + WAIT
    while lab.exec("squeue", "--noheader") and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not lab.exec("squeue", "--noheader")
    for node in NODES:
        while (left := leftovers(lab, node)) and time.monotonic() < deadline and not active:
            time.sleep(0.5)  # slurmstepd needs a moment to end
            deadline = min(deadline, time.monotonic() + 20)
        assert not left, left


def leftovers(lab: Lab, node: str) -> list[str]:
    """What a node without jobs should not have."""
    processes = lab.exec("ps", "-eo", "comm=,args=", node=node).splitlines()
    files = lab.exec("find", "/tmp", "/dev/shm", "-mindepth", "1", "-maxdepth", "1", "-printf", "%p\\n", node=node)
    shared = {"/tmp/" + str(path).split("/")[2] for path in (lab.folder, ROOT, Path(sys.prefix), Path(sys.base_prefix))}
    ports = lab.exec("ss", "-Hltn", node=node).splitlines()
    return [
        *(f"{node}: process {line}" for line in processes if line.split()[0] not in OURS),
        *(f"{node}: file {line}" for line in files.split() if line not in shared),
        *(f"{node}: port {line}" for line in ports if not line.split()[3].endswith(":6818")),  # slurmd's
    ]
