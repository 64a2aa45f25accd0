"""`sbatch slurm/train_ldm.sh` on a real Slurm cluster: both stages over two nodes, and each kind of notice and loss.

What a disturbed run ends with is compared bit for bit with an undisturbed one (same world size). Outcomes are asserted,
never times; how long a restart took, and of what that is made, goes into the report.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.fault_table import BELOW, Row

from .conftest import BATCH, EVERY, ONE, ROOT, STEPS, TWO, Job, Lab, curve, events, kept
from .disturbed import begun, cost, requeued, same_end

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

WIDTHS = {"one-node": ONE, "two-node": TWO}
each_width = pytest.mark.parametrize("width", WIDTHS)


def test_both_stages_on_both_nodes(whole: Job) -> None:
    """Two ranks on two nodes, and nothing that a restart would show."""
    for stage in STEPS:
        assert f"{stage}: 2 ranks on node1, node2" in whole.log
        assert sorted(curve(whole.folder / "runs", stage)) == list(range(1, STEPS[stage] + 1))
    assert "cluster: node1, node2 joined (2 CPUs, 0 GPUs)" in whole.log
    assert whole.facts()["Restarts"] == "0"


def test_time_limit(lab: Lab, whole: Job, row: Row) -> None:
    """SIGUSR1 before the limit, in the autoencoder's stage: saved, queued again, on in the same MLflow runs."""
    row.fault, row.how = "time limit", "the job's limit set to some minutes, of which SIGUSR1 tells"
    slow = "autoencoder.training.preview_every=1"
    job = lab.sbatch("limit", slow, options=(*TWO, "--signal=B:USR1@600", "--time=60"))
    job.wait_step("autoencoder", EVERY + 10)
    with ranks_stand_still(lab, job.nodes()):  # the stage would be over: Slurm looks at limits every half minute
        hours, minutes, _ = map(int, job.facts()["RunTime"].split(":"))
        limit = 60 * hours + minutes + 5  # less than the ten before which the signal is due
        lab.exec("scontrol", "update", f"JobId={job.id}", f"TimeLimit={limit}")
        job.wait(lambda: "notice: SIGUSR1" in job.log, "the notice")
    at = time.time()
    job.wait(lambda: "queueing again" in job.log and job.state == "PENDING", "its return to the queue")
    lab.exec("scontrol", "update", f"JobId={job.id}", "TimeLimit=60")
    requeued(job)
    same_end(job, whole, "autoencoder", 0, row, at)
    runs = mlflow_runs(job.folder / "runs")
    assert set(runs) == {"small", "1 ingest", "2 autoencoder", "3 encode", "4 diffusion"}
    assert all(run.info.status == "FINISHED" for run in runs.values())
    BELOW.append(restart_times(job, "autoencoder"))


@contextmanager
def ranks_stand_still(lab: Lab, nodes: list[str]) -> Iterator[None]:
    """SIGSTOP to the ranks on these nodes, and at the end SIGCONT."""
    for node in nodes:
        lab.exec("pkill", "-STOP", "-f", "^ray::.*RayTrainWorker", node=node)
    try:
        yield
    finally:
        for node in nodes:
            lab.exec("pkill", "-CONT", "-f", "^ray::.*RayTrainWorker", node=node)


def mlflow_runs(root: Path) -> dict[str, Any]:
    """Name -> run in the tracker; no name twice."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    found = {run.info.run_name: run for run in runs}
    assert len(found) == len(runs), sorted(run.info.run_name for run in runs)
    return found


def restart_times(job: Job, stage: str) -> str:
    """From the notice to the first step of the next attempt, and what that is made of."""

    def said(pattern: str, number: int) -> float:
        """When the script said a line for the `number`th time (of today)."""
        clock = re.findall(rf"^\[(\d\d:\d\d:\d\d)\] slurm: .*{pattern}", job.log, re.M)[number]
        return datetime.fromisoformat(f"{time.strftime('%Y-%m-%d')}T{clock}").timestamp()

    pipeline = [
        re.search(r'"ts_ms":(\d+)', line)
        for path in sorted(job.folder.glob("runs/pipelines/*/spool/*.jsonl"))
        for line in path.read_text().splitlines()
        if '"kind":"start"' in line
    ]
    starts = [event["ts_ms"] / 1000 for event in events(job.folder / "runs", stage) if event["kind"] == "start"]
    steps = [e["ts_ms"] / 1000 for e in events(job.folder / "runs", stage) if e["kind"] == "metrics"]
    assert pipeline[1]
    points = {
        "ranks saved, all taken down": said("taken down", 0),
        "Slurm starts the job again": said("restart 1", 0),
        "ports found on all nodes": said("Ray's head is", 1),
        "Ray up, nodes joined, pipeline planned": int(pipeline[1][1]) / 1000,
        "stage begins": starts[1],
        "first step (ranks placed, imports, checkpoint read)": min(at for at in steps if at > starts[1]),
    }
    last, lines = said("notice: ", 0), []
    whole = points["first step (ranks placed, imports, checkpoint read)"] - points["ranks saved, all taken down"]
    for name, at in points.items():
        lines.append(f"  {at - last:6.1f} s  {name}")
        last = at
    head = f"### From requeue to the first step\n\n{whole:.0f} s after a time limit, on a machine that all nodes share:"
    return "\n".join([head, "", "```text", *lines, "```"])


@contextmanager
def slurm_conf(lab: Lab, **settings: object) -> Iterator[None]:
    """The site with other settings."""
    config = lab.folder / "etc" / "slurm.conf"
    before = after = config.read_text()
    for key, value in settings.items():
        after, found = re.subn(rf"\b{key}=\S+", f"{key}={value}", after)
        after = after if found else f"{key}={value}\n{after}"
    config.write_text(after)
    lab.exec("scontrol", "reconfigure")
    try:
        yield
    finally:
        config.write_text(before)
        lab.exec("scontrol", "reconfigure")


@pytest.fixture(params=[False, True], ids=["steps-only", "user-signal"])
def tells(lab: Lab, request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the site sets preempt_send_user_signal."""
    with slurm_conf(lab, **{"SlurmctldParameters": "preempt_send_user_signal"} if request.param else {}):
        yield request.param


def preempt(lab: Lab, job: Job) -> None:
    """Have a job of a higher partition take the last of its nodes, and wait until it is in the queue again."""
    lab.exec("sbatch", "-p", "high", "-w", job.nodes()[-1], "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    job.wait(lambda: job.facts()["Restarts"] == "1", "its return to the queue")


@each_width
def test_preemption(lab: Lab, whole: Job, row: Row, width: str, tells: bool) -> None:
    """A job of a higher partition takes a node: saved within the grace, with and without preempt_send_user_signal."""
    row.fault = f"preemption of a {width} job" + (", the site sends the user's signal" if tells else "")
    row.how = "a job of a higher partition takes a node, 120 s of grace"
    job = begun(lab, whole, f"preempted-{width}-{tells}", WIDTHS[width])
    at = time.time()
    preempt(lab, job)
    assert ("notice: SIGUSR1" in job.log) or not tells
    assert ("SIGTERM to the job's steps" in job.log) or tells
    requeued(job)
    same_end(job, whole, "diffusion", 0, row, at)


@pytest.fixture(params=[60, 1])
def kill_wait(lab: Lab, request: pytest.FixtureRequest) -> Iterator[int]:
    """Seconds between SIGTERM and SIGKILL, where preemption has no grace (as Slurm has it unless told otherwise)."""
    with slurm_conf(lab, GraceTime=0, KillWait=request.param):
        yield request.param


@each_width
def test_preemption_without_grace(lab: Lab, whole: Job, row: Row, width: str, kill_wait: int) -> None:
    """Slurm ends the job and queues it again: there is KillWait to save, else the last checkpoint counts."""
    row.fault = f"preemption of a {width} job without grace, KillWait={kill_wait}"
    row.how = "a job of a higher partition takes a node, GraceTime=0"
    job = begun(lab, whole, f"no-grace-{width}-{kill_wait}", WIDTHS[width])
    at = time.time()
    preempt(lab, job)
    assert "queueing again" not in job.log
    requeued(job)
    same_end(job, whole, "diffusion", EVERY if kill_wait == 1 else 0, row, at)


@each_width
def test_scancel(lab: Lab, whole: Job, row: Row, width: str) -> None:
    """Saved and ended, not queued again; the same sbatch goes on from there."""
    row.fault, row.how = f"scancel of a {width} job", "`scancel`; after its end the same `sbatch` again"
    job = begun(lab, whole, f"cancelled-{width}", WIDTHS[width])
    protected(lab, job)
    at = time.time()
    lab.exec("scancel", job.id)
    job.wait(lambda: job.state == "CANCELLED" and "taken down" in job.log, "its end")
    assert "queueing again" not in job.log and "the pipeline's exit code is 130" in job.log
    assert not lab.exec("squeue", "--noheader", "--states=PENDING")
    root = job.folder / "runs"
    reached = max(curve(root, "diffusion"))
    assert kept(root, "diffusion")[-1] == reached * BATCH < STEPS["diffusion"] * BATCH
    assert job.facts()["Restarts"] == "0"
    job = lab.sbatch(job.folder.name, options=WIDTHS[width])
    job.finish()
    same_end(job, whole, "diffusion", 0, row, at)


def protected(lab: Lab, job: Job) -> None:
    """Without the token nobody gets in; no dashboard, none of its servers on the nodes, no Ray client server, no port
    outside of the documented."""
    found = re.search(r"Ray's head is (\S+):(\d+), ports up to (\d+)", job.log)
    assert found
    address, first, last = found[1], int(found[2]), int(found[3])
    ask = "import sys, urllib.request\ntry: urllib.request.urlopen(sys.argv[1])\nexcept Exception as e: print(e.code)"
    path = f"{first + 5}/get_runtime_envs_info"
    assert lab.exec("python3", "-c", ask, f"http://{address}:{path}", node="node3").strip() == "401"
    listening = [line.split() for line in lab.exec("ss", "-Hltnp", node=job.nodes()[0]).splitlines()]
    known = {int(words[3].rpartition(":")[2]) for words in listening if "srun" not in words[-1]}
    assert {first, first + 1} <= known and not known & {first + 3, first + 4, 8265, 10001, 52365}
    assert all(first <= port <= last or port == 6818 or port >= 32768 for port in known), known


@pytest.mark.parametrize("node", ["node1", "node2"], ids=["head", "other"])
def test_a_node_dies(lab: Lab, whole: Job, row: Row, node: str) -> None:
    """Slurm queues the job again; it goes on on another node, at most one interval is done twice."""
    row.fault = "Slurm node killed" + (", the one with Ray's head" if node == "node1" else "")
    row.how = "SIGKILL of all processes of a node, slurmd too; queued again on others"
    job = begun(lab, whole, f"killed-{node}")
    assert job.facts()["NodeList"] == "node[1-2]"
    at = time.time()
    lab.slurmlab("kill-node", node)
    try:
        requeued(job)
    finally:
        lab.slurmlab("restore-node", node)
    again = job.log.rpartition("restart 1")[2].partition("next:")[0]  # then come commands with the folder's name
    assert again and node not in again
    # the folders of a node that lost power are there until the next job on it, whose first act is this
    clear = "from pathlib import Path\nfrom pipeline.cluster.folders import sweep\n"
    clear += "print(sweep(Path('/tmp').glob('ldm-job-*'), young=0))"
    assert job.id in lab.exec("env", f"PYTHONPATH={ROOT}", sys.executable, "-c", clear, node=node)
    same_end(job, whole, "diffusion", EVERY, row, at)
    lab.wait_idle(node)


@each_width
def test_slurm_drains_a_node(lab: Lab, whole: Job, row: Row, width: str) -> None:
    """No signal comes; the script sees it, the ranks save, the job goes on on other nodes."""
    row.fault = f"Slurm drains a node of a {width} job"
    row.how = "`scontrol update NodeName=... State=DRAIN`, polled every 2 s"
    job = begun(lab, whole, f"drained-{width}", WIDTHS[width])
    node = job.nodes()[0]
    at = time.time()
    lab.exec("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    try:
        requeued(job)
    finally:
        lab.exec("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert f"drained: {node}" in job.log and node not in job.nodes()
    same_end(job, whole, "diffusion", 0, row, at)


DRAIN = """
import ray
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
from ray._private.worker import global_worker as worker
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
import subprocess, sys
node, = [n["NodeID"] for n in ray.nodes() if n["NodeManagerHostname"] == sys.argv[1]]
command = ["ray", "drain-node", "--address", ray.get_runtime_context().gcs_address, "--node-id", node]
more = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test", "--deadline-remaining-seconds", "600"]
sys.exit(subprocess.run(command + more).returncode)
"""


def ray_drains(lab: Lab, job: Job, node: str) -> None:
    """`ray drain-node`, with the environment of the job's Ray."""
    find = "tr '\\0' '\\n' </proc/$(pgrep -o raylet)/environ | grep -E '^(RAY_(AUTH|TMPDIR|ADDRESS)|PATH=)'"
    head = job.nodes()[0]
    variables = lab.exec("bash", "-c", find, node=head).split()
    lab.exec("env", *variables, "python", "-c", DRAIN, node, node=head)


def test_ray_drains_the_only_node(lab: Lab, whole: Job, row: Row) -> None:
    """Nothing is left to go on with: saved, and the job is queued again."""
    row.fault, row.how = "Ray drains the node of a one-node job", "`ray drain-node` with 600 s to go"
    job = begun(lab, whole, "spot-one-node", ONE)
    at = time.time()
    ray_drains(lab, job, job.nodes()[0])
    requeued(job)
    same_end(job, whole, "diffusion", 0, row, at)


def test_ray_drains_a_node(lab: Lab, whole: Job, row: Row) -> None:
    """`ray drain-node` (an autoscaler, a spot machine's notice): saved, and on with the ranks that are left."""
    row.fault, row.how = "Ray drains a node of a two-node job", "`ray drain-node` with 600 s to go"
    job = begun(lab, whole, "spot")
    at = time.time()
    ray_drains(lab, job, job.nodes()[1])
    job.wait(lambda: "a node is being drained: saved, going on on the others" in job.log, "the end of its ranks")
    reached = max(curve(job.folder / "runs", "diffusion"))  # the next ranks need seconds to start
    job.finish()
    assert job.facts()["Restarts"] == "0"
    assert "cluster: 2 workers asked for, room for 1" in job.log
    ours, theirs = curve(job.folder / "runs", "diffusion"), curve(whole.folder / "runs", "diffusion")
    assert sorted(ours) == sorted(theirs)
    far = max(abs(one - loss) / abs(loss) for step, (loss,) in theirs.items() for one in ours[step])
    assert far <= 1e-5
    cost(job, "diffusion", 0, row, at, reached)
    row.end = f"within {far:.0e}"


def test_two_jobs_on_one_node(lab: Lab, whole: Job) -> None:
    """Side by side, both with the losses of the job that had two nodes: other ports, other folders, other Rays."""
    options = ("--nodes=1", "--cpus-per-task=2", "--nodelist=node1")
    jobs = [lab.sbatch(f"beside-{i}", options=options) for i in range(2)]
    for job in jobs:
        job.wait_step("autoencoder", 1)
    assert [job.state for job in jobs] == ["RUNNING"] * 2 or "COMPLETED" in [job.state for job in jobs]
    heads = set()
    for job in jobs:
        job.finish()
        heads |= set(re.findall(r"Ray's head is (\S+),", job.log))
        for stage in STEPS:
            assert curve(job.folder / "runs", stage) == curve(whole.folder / "runs", stage)
    assert len(heads) == 2


def test_a_mistake_is_told_in_one_line(lab: Lab) -> None:
    """The pipeline's exit code is the job's; nothing is queued again."""
    job = lab.sbatch("mistake", "autoencoder.training.step=3", options=("--nodes=1", "--cpus-per-task=1"))
    job.wait(lambda: job.state == "FAILED", "its end")
    assert job.facts()["ExitCode"] == "2:0" and job.facts()["Restarts"] == "0"
    assert "error: " in job.log and "Traceback" not in job.log
