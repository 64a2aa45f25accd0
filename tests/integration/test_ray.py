"""The pipeline through real Ray and DeepSpeed, as a user starts it: killed and started again, stopped, on one worker,
as a job of a running cluster; and the preflight of that cluster.

Each run is `python -m jobs.<verb>` in a process of its own. Curves are compared as they were spooled, every step.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipeline.cluster.fork_server import GPUS
from pipeline.tracking.spool import spool_ends, whole_lines
from pipeline.training.checkpoint import listing

ROOT = Path(__file__).parents[2]
STEPS = 16
SMALL = f"""\
run: {{name: small}}
data:
  source: {{kind: digits}}
  size: 16
  channels: 1
  shard_size: 400
autoencoder:
  model: {{kind: kl, width: 8, multipliers: [1, 2], blocks: 1, latent_channels: 2, groups: 4, attention: false}}
  training: {{precision: fp32, batch_size: 32, steps: {STEPS}, half_lives: [200], log_every: 1, save_every: 4,
             validate_every: 8, preview_every: 8, micro_batch: 8}}
diffusion:
  backbone: {{kind: dit, width: 32, depth: 2, heads: 2, patch: 2}}
  training: {{precision: fp32, batch_size: 32, steps: {STEPS}, half_lives: [200], log_every: 1, save_every: 4,
             validate_every: 8, preview_every: 8}}
cluster: {{workers: 2, threads: 1}}
tracking: {{deadline: 1}}
"""


def start(
    verb: str, config: Path, root: Path, *overrides: str, env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-u", "-m", f"jobs.{verb}", "--config", str(config), f"run.root={root}", *overrides]
    with open(config.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True, env=env)


def finish(process: subprocess.Popen[bytes], config: Path) -> None:
    assert process.wait(400) == 0, config.with_suffix(".log").read_text()[-3000:]


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process and all that it started, Ray's daemons and workers among them."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def has(process: subprocess.Popen[bytes], name: str) -> bool:
    """Whether one of its family is called so."""
    for member in family(process):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if member.name().startswith(name):
                return True
    return False


def kill_all(process: subprocess.Popen[bytes]) -> None:
    members = family(process)
    for member in members:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(members, 30)
    process.wait(30)


def curve(root: Path, stage: str, key: str = "train_loss") -> dict[int, list[float]]:
    """step -> values spooled for it, by all attempts; without what a superseded one wrote after its end."""
    found: dict[int, list[float]] = {}
    for path, end in spool_ends(sorted(root.glob(f"artifacts/{stage}/*/work/spool/*.jsonl"))).items():
        for _, event in whole_lines(path, 0, end):
            if event and event["kind"] == "metrics" and f"{stage}/{key}" in event["values"]:
                found.setdefault(event["step"], []).append(event["values"][f"{stage}/{key}"])
    return found


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes], config: Path) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, config.with_suffix(".log").read_text()[-3000:]
        assert time.monotonic() < deadline, "nothing happened for 300 s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def new_root(config: Path, database: bytes) -> Iterator[Callable[..., Path]]:
    """`new_root(name)`: a root with nothing but MLflow's empty database. Unless `sent`, another process seems to send
    what lies there to MLflow, so that each run's shipper, which imports MLflow for seconds, has nothing to do."""
    with ExitStack() as held:

        def make(name: str, sent: bool = False) -> Path:
            root = config.parent / name
            (root / "tracking").mkdir(parents=True)
            (root / "mlflow.db").write_bytes(database)
            if not sent:
                fcntl.flock(held.enter_context(open(root / "tracking" / "lock", "w")), fcntl.LOCK_EX)
            return root

        yield make


@pytest.fixture(scope="module")
def undisturbed(config: Path, new_root: Callable[..., Path]) -> Path:
    root = new_root("undisturbed")
    finish(start("diffusion", config, root), config)
    return root


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_losses(
    config: Path, undisturbed: Path, new_root: Callable[..., Path]
) -> None:
    """SIGKILL of the whole process tree, once in each trained stage; the same command goes on, bit for bit."""
    root = new_root("killed")
    for stage, at in (("autoencoder", 6), ("diffusion", 9)):
        process = start("diffusion", config, root)
        wait_for(lambda stage=stage, at=at: max(curve(root, stage), default=0) >= at, process, config)  # type: ignore[misc]
        kill_all(process)
        assert max(curve(root, stage)) < STEPS
    finish(start("diffusion", config, root), config)
    for stage in ("autoencoder", "diffusion"):
        want, got = curve(undisturbed, stage), curve(root, stage)
        assert sorted(got) == list(range(1, STEPS + 1)) == sorted(want)
        assert all(len(values) == 1 for values in got.values())  # no step is logged twice
        assert got == want
        assert curve(root, stage, "val_loss") == curve(undisturbed, stage, "val_loss")


def test_stop_saves_and_leaves_no_process(config: Path, new_root: Callable[..., Path]) -> None:
    """Ctrl-C: exit code 130, a checkpoint of that moment, nothing left running. The ranks are forks where no GPU is."""
    root = new_root("stopped")
    process = start(
        "autoencoder", config, root, "autoencoder.training.steps=100000", "autoencoder.training.save_every=100000"
    )
    wait_for(lambda: max(curve(root, "autoencoder"), default=0) >= 3, process, config)
    members = family(process)
    assert len(members) > 5
    ranks = [member for member in members if "RayTrainWorker" in " ".join(member.cmdline())]
    parents = {" ".join(rank.parent().cmdline()) for rank in ranks}  # type: ignore[union-attr]
    assert len(ranks) == 2 and len(parents) == 1
    assert ("fork_server" in parents.pop()) != any(any(Path("/dev").glob(name)) for name in GPUS)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(120) == 130, config.with_suffix(".log").read_text()[-3000:]
    _, alive = psutil.wait_procs(members, 20)
    assert [p.name() for p in alive] == []
    saved = list(root.glob("artifacts/autoencoder/*/work/checkpoints/*/manifest.json"))
    assert len(saved) == 2  # the one at the start, and the one of the stop


@pytest.mark.slow
def test_one_worker_encodes_the_same_bytes(config: Path, undisturbed: Path, new_root: Callable[..., Path]) -> None:
    """The latents of 1 and of 2 workers are the same files. A notice while Ray is waited for is told as one."""
    root = new_root("one-worker")
    pinned = next(undisturbed.glob("artifacts/autoencoder/*/manifest.json")).parent
    words = (f"autoencoder.from={pinned}", "cluster.workers=1")
    process = start("encode", config, root, *words)
    wait_for(lambda: has(process, "ray::_Actor"), process, config)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(120) == os.EX_TEMPFAIL, config.with_suffix(".log").read_text()[-3000:]
    finish(start("encode", config, root, *words), config)
    want, got = ({p.name: p.read_bytes() for p in (r / "latents").glob("*.tar")} for r in (undisturbed, root))
    assert want and got == want


# ---- a cluster that is there already ---------------------------------------------------------------------------------

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Head:
    """A Ray cluster of one node with a token; `environment` is that of its clients."""

    folder: Path
    address: str
    dashboard: str
    environment: dict[str, str]

    def ray(self, *arguments: str, token: bool = True) -> subprocess.CompletedProcess[str]:
        environment = dict(self.environment)
        if not token:
            environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        return subprocess.run(
            [RAY, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
        )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def ray_head(cpus: int) -> Iterator[Head]:
    """`ray start --head`. Its dashboard is on the loopback; the other ports listen everywhere, whatever Ray is told,
    and ask for the token."""
    folder = Path(tempfile.mkdtemp(prefix="ldm-head-"))  # short: the paths of sockets end at 107 characters
    gcs, dashboard = free_port(), free_port()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
        "OMP_NUM_THREADS": "1",
    }
    where = ["--head", f"--port={gcs}", f"--temp-dir={folder}", "--dashboard-host=127.0.0.1"]
    where += [f"--dashboard-port={dashboard}"]
    try:
        with ray_node(folder / "start.log", environment, cpus, *where) as process:
            address = re.compile(r"--address='([^']+)'")  # coloured, also in a file; it comes after "started"
            wait_for(lambda: address.search((folder / "start.log").read_text()), process, folder / "start.log")
            found = address.search((folder / "start.log").read_text())
            assert found
            yield Head(folder, found.group(1), f"http://127.0.0.1:{dashboard}", environment)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray_node(log: Path, environment: dict[str, str], cpus: int, *where: str) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start --block` of a node, all of whose processes are this one's family."""
    where += ("--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", "--object-store-memory=200000000")
    # ports that are given are not waited for, in files that agents write: on a busy machine they come too late
    agents = ("node-manager", "object-manager", "dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent")
    where += tuple(f"--{name}-port={free_port()}" for name in (*agents, "metrics-export"))
    with open(log, "wb") as output:
        process = subprocess.Popen([RAY, "start", "--block", *where], env=environment, stdout=output, stderr=output)
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text(), process, log)
        yield process
    finally:
        if process.poll() is None:
            members = family(process)
            process.terminate()
            _, alive = psutil.wait_procs(members, 3)  # an actor that outlives its driver does not end by itself
            for member in alive:
                member.kill()
            psutil.wait_procs(alive, 20)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster of one node of two CPUs."""
    with ray_head(2) as head:
        yield head


@pytest.mark.slow
def test_preflight_of_a_running_cluster(config: Path, head: Head) -> None:
    """All checks, with a real all-reduce and a real step of both stages; nothing is left below the root."""
    root, file = config.parent / "preflight", config.parent / "preflight.json"
    environment = head.environment | {"RAY_ADDRESS": head.address, "PYTHONPATH": str(ROOT)}
    finish(start("preflight", config, root, "--json", str(file), env=environment), config)
    report = json.loads(file.read_text())
    told = {finding["check"]: finding["state"] for finding in report["findings"]}
    assert {"gpu", "memory", "disk", "clock", "root", "ports", "tracker", "collective", "step", "storage"} <= set(told)
    assert "refused" not in told.values()
    measured = report["figures"]["rehearsal"]
    assert measured["world"] == 2 and set(measured["stages"]) == {"autoencoder", "diffusion"}
    assert all(row["bandwidth"] > 0 for row in measured["collective"])
    assert report["forecast"]["autoencoder"]["hours"] > 0 and report["forecast"]["diffusion"]["bottleneck"]
    assert not list((root / "preflight").iterdir()) and not (root / "artifacts").exists()
    print(f"preflight: {report['seconds']:.0f} s")


@pytest.mark.slow
def test_a_job_that_is_stopped_and_submitted_again(
    config: Path, undisturbed: Path, head: Head, new_root: Callable[..., Path]
) -> None:
    """`ray job submit`, `ray job stop` in the first stage, submit again: the artifacts and losses of a plain run,
    in one MLflow run a stage."""
    from mlflow import MlflowClient

    root = config.parent / "job"
    overrides = [
        f"run.root={root}",
        "tracking.deadline=60",
        "evaluate.samples=16",
        "evaluate.steps=2",
        "evaluate.extractor.steps=4",
    ]
    slower = [f"autoencoder.training.{key}" for key in ("validate_every=1", "preview_every=1", "save_every=1000")]

    def submit(name: str, *more: str, token: bool = True) -> subprocess.CompletedProcess[str]:
        job = ["python", "-m", "jobs.train_ldm", "--config", str(config), *overrides, *more]
        options = ["--address", head.dashboard, "--submission-id", name, "--runtime-env", "jobs/ray_job.yaml"]
        wait = ["--no-wait"] if name == "first" else []
        return head.ray("job", "submit", *options, *wait, "--working-dir", ".", "--", *job, token=token)

    stranger = submit("stranger", token=False)
    assert stranger.returncode != 0 and not root.exists()
    assert new_root("job", sent=True) == root

    asked = submit("first", *slower)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    deadline = time.monotonic() + 300
    while max(curve(root, "autoencoder"), default=0) < 2:
        assert time.monotonic() < deadline, head.ray("job", "logs", "--address", head.dashboard, "first").stdout[-3000:]
        time.sleep(0.02)
    stopped = head.ray("job", "stop", "--address", head.dashboard, "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    logs = head.ray("job", "logs", "--address", head.dashboard, "first").stdout
    assert "SIGTERM: saving, then stopping" in logs and "stopped" in logs, logs[-3000:]
    at = max(curve(root, "autoencoder"))
    assert at < STEPS, "the stage was over before the stop"
    (checkpoints,) = root.glob("artifacts/autoencoder/*/work/checkpoints")
    assert listing(checkpoints)[0].position == at * 32  # of the very step at which it was stopped

    again = submit("again")
    assert again.returncode == 0, (again.stdout + again.stderr)[-3000:]
    for stage in ("ingest", "autoencoder", "encode", "diffusion"):
        want, got = ([p.name for p in (r / "artifacts" / stage).iterdir()] for r in (undisturbed, root))
        assert got == want, f"{stage}: another fingerprint"
    for stage in ("autoencoder", "diffusion"):
        assert curve(root, stage) == curve(undisturbed, stage)  # every step, once, bit for bit

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = {run.info.run_name: run.info.status for run in client.search_runs(experiments)}
    assert len(client.search_runs(experiments)) == len(runs) == 7 and set(runs.values()) == {"FINISHED"}, runs

    packages = list(head.folder.glob("session_*/runtime_resources/working_dir_files/_ray_pkg_*/"))
    files = [path for path in packages[0].rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    print(f"shipped: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.2f} MB")
    assert {path.relative_to(packages[0]).parts[0] for path in files} <= {"jobs", "models", "pipeline"}
    assert {path.suffix for path in files} <= {".py", ".yaml"}
