"""Preflight in a job of a real Slurm cluster: sound when nothing is wrong; each of five planted defects is named.

The defects are of the machines: a throttled disk, a full one, a shifted clock, a firewall, a tracker that is not there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import NODES, Job, Lab

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

TWO = ("--nodes=2", "--cpus-per-task=1", "--nodelist=node[1-2]")
BLKIO = Path("/sys/fs/cgroup/blkio")


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


def found(job: Job) -> dict[tuple[str, str], tuple[str, str]]:
    """(check, node) -> (state, text) of a job that ran nothing but preflight, with --json."""
    report: dict[str, Any] = json.loads((job.folder / "report.json").read_text())
    return {(f["check"], f["node"]): (f["state"], f["text"]) for f in report["findings"]}


def preflight(lab: Lab, name: str, *words: str, **environment: str) -> Job:
    """A job of preflight alone, which takes its warnings and goes on to the end."""
    report = lab.folder / "shared" / name / "report.json"
    job = lab.sbatch(name, f"--json={report}", *words, options=TWO, LDM_VERB="preflight", **environment)
    job.wait(lambda: job.state in ("COMPLETED", "FAILED"), "its end")
    return job


def refused(job: Job, line: str) -> None:
    """The job ended with the pipeline's code for a mistake and one line, before anything was trained."""
    job.wait(lambda: job.state == "FAILED", "its end")
    assert job.facts()["ExitCode"] == "2:0" and job.facts()["Restarts"] == "0", job.told()
    assert f"error: preflight: {line}" in job.log and "Traceback" not in job.log, job.told()
    assert not list(job.folder.glob("runs/artifacts/autoencoder/*")), job.told()


def test_sound(lab: Lab) -> None:
    """Both nodes pass all checks, then the pipeline runs."""
    job = lab.sbatch("sound", "autoencoder.training.steps=4", options=TWO, LDM_VERB="autoencoder", LDM_PREFLIGHT="1")
    job.finish()
    told, _, rest = job.log.rpartition("preflight: ")
    assert "refused" not in told and "slow" not in told, job.told()
    for check in ("clock: ok", "root: ok", "ports: ok", "storage on node2: ok"):
        assert f"preflight: {check}" in told, job.told()
    assert "mlflow.db can be written" in told  # slowly, maybe
    assert "2 ranks on 2 nodes" in told and "forecast: ok: diffusion: " in told
    assert "autoencoder: 2 ranks on node1, node2" in rest
    assert not list(job.folder.glob("runs/preflight/*"))


@contextmanager
def shared_disk(lab: Lab, folder: Path, megabytes: int) -> Iterator[str]:
    """A disk of its own at `folder` on this machine and on all nodes; gives its device's number."""
    folder.mkdir(parents=True, exist_ok=True)
    image = lab.folder / f"{folder.parent.name}.img"
    run("truncate", f"--size={megabytes}M", image)
    run("mkfs.ext4", "-q", image)
    run("mount", "-o", "loop", image, folder)
    device = run("findmnt", "-no", "SOURCE", folder)
    try:
        for node in NODES:
            lab.exec("mount", device, str(folder), node=node)
        yield run("findmnt", "-no", "MAJ:MIN", folder).strip()
    finally:
        for node in NODES:
            lab.exec("umount", "--lazy", str(folder), node=node)
        run("umount", folder)


def test_slow_storage(lab: Lab) -> None:
    """Reads of node2 from the disk of the root are held to 20 kB/s."""
    if not BLKIO.is_dir():
        pytest.skip("needs the blkio controller of control groups, version 1")
    init = psutil.Process(int((lab.folder / "run" / "node2").read_text().split()[0]))
    group = BLKIO / lab.folder.parent.name
    group.mkdir()
    try:
        with shared_disk(lab, lab.folder / "shared" / "slow" / "runs", 1024) as device:
            (group / "blkio.throttle.read_bps_device").write_text(f"{device} 20000")
            for process in (init, *init.children(recursive=True)):
                (group / "cgroup.procs").write_text(str(process.pid))
            job = preflight(lab, "slow", "data.source={kind: shapes, count: 2000}", "data.size=64", "data.channels=3")
    finally:
        while left := (group / "cgroup.procs").read_text().split():
            for pid in left:
                with suppress(ProcessLookupError):
                    (BLKIO / "cgroup.procs").write_text(pid)
        group.rmdir()
    seen = found(job)
    assert seen["storage", "node1"][0] == "ok", job.told()
    state, text = seen["storage", "node2"]
    assert state in ("warning", "refused") and text.startswith("slow: "), job.told()


def test_full_disk_of_a_node(lab: Lab) -> None:
    """Nothing is left on the disk that Ray and the ranks of node2 keep their files on."""
    for node, size in (("node1", "4g"), ("node2", "80m")):
        lab.exec("mount", "-t", "tmpfs", "-o", f"size={size}", "local", "/mnt", node=node)
    try:
        job = lab.sbatch("full-local", options=TWO, LDM_LOCAL="/mnt", LDM_PREFLIGHT="1")
        refused(job, "disk on node2: refused: ")
        assert "GB free in the temporary folder /mnt/ldm-job-" in job.log
    finally:
        for node in ("node1", "node2"):
            lab.exec("umount", "--lazy", "/mnt", node=node)


def test_full_root(lab: Lab) -> None:
    """Less is left on the disk of the root than the run will write."""
    root = lab.folder / "shared" / "full-root" / "runs"
    with shared_disk(lab, root, 64):
        free = shutil.disk_usage(root).free
        run("fallocate", "--length", str(free - 4_000_000), root / "other")
        job = lab.sbatch("full-root", "diffusion.backbone.width=128", options=TWO, LDM_PREFLIGHT="1")
        refused(job, "disk on node1: refused: 0.00 GB free at ")


SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
/* Not what packages of Python read in C++: they wait until such a time, and the kernel's clock cannot be shifted */
int clock_gettime(clockid_t clock, struct timespec *now) {
  int code = syscall(SYS_clock_gettime, clock, now);
  char host[64] = "";
  Dl_info caller;
  if (clock == CLOCK_REALTIME && !gethostname(host, 63) && !strcmp(host, "node2")
      && dladdr(__builtin_return_address(0), &caller) && caller.dli_fname
      && !strstr(caller.dli_fname, "-packages") && !strstr(caller.dli_fname, "libstdc++"))
    now->tv_sec -= 100;
  return code;
}
"""


def test_wrong_clock(lab: Lab) -> None:
    """Processes on node2 read a clock that is 100 s behind."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc: a clock of its own for a node is made by a library before all others")
    shared = lab.folder / "shared"
    (shared / "clock.c").write_text(SHIM)
    run("gcc", "-shared", "-fPIC", "-O1", "-o", shared / "clock.so", shared / "clock.c", "-ldl")
    site = (shared / "site.sh").read_text() + f"export LD_PRELOAD={shared / 'clock.so'}\n"
    (shared / "site-clock.sh").write_text(site)
    job = lab.sbatch("clock", options=TWO, LDM_PREFLIGHT="1", LDM_SITE=str(shared / "site-clock.sh"))
    refused(job, "clock on node2: refused: ")
    assert " s behind the other clocks (measured to " in job.log


def test_closed_ports(lab: Lab) -> None:
    """A firewall of node2 opens Ray's listed ports, and not those that processes take from the kernel."""
    ports = "32768-60999"
    rule = ("from", "10.77.0.12", "ipproto", "tcp", "sport", ports, "dport", ports, "pref", "100", "prohibit")
    lab.exec("ip", "rule", "add", *rule, node="node2")
    try:
        job = lab.sbatch("closed", options=TWO, LDM_PREFLIGHT="1")
        refused(job, "node on node2: refused: gives no answer: cannot reach Ray's worker on node2 at 10.77.0.12:")
    finally:
        lab.exec("ip", "rule", "del", "pref", "100", node="node2")


def test_tracker_down(lab: Lab) -> None:
    """Nobody listens at the tracker's address: a warning, since training keeps all on disk."""
    job = preflight(lab, "tracker", "tracking.uri=http://10.77.0.1:5999")
    state, text = found(job)["tracker", ""]
    assert state == "warning" and text.startswith("http://10.77.0.1:5999: "), job.told()
    assert job.facts()["ExitCode"] == "0:0", job.told()


@pytest.mark.parametrize("end", ["notice", "scancel"])
def test_a_signal_ends_preflight(lab: Lab, end: str) -> None:
    """After a notice the job is queued again, and its restart goes on without preflight; after scancel it ends."""
    job = lab.sbatch(f"preflight-{end}", "autoencoder.training.steps=4", options=TWO, LDM_VERB="autoencoder",
                     LDM_PREFLIGHT="1")  # fmt: skip
    job.wait(lambda: list(job.folder.glob("runs/preflight/*/work")), "its step")
    if end == "scancel":
        lab.exec("scancel", job.id)
        job.wait(lambda: job.state == "CANCELLED" and "taken down" in job.log, "its end")
        assert "queueing again" not in job.log
    else:
        lab.exec("scancel", "--batch", "--signal=USR1", job.id)
        job.finish()
        assert job.facts()["Restarts"] == "1"
        again = job.log.rpartition("restart 1")[2].partition("next:")[0]  # then come commands with the folder's name
        assert again and "preflight" not in again, job.told()
    assert "images/s" not in job.log.partition("taken down")[0], job.told()  # the step was not waited for
    assert not list(job.folder.glob("runs/preflight/*"))
