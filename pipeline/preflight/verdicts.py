"""What the answers of machines and ranks mean for a run: each check's thresholds, their reasons, and its words.

Pure functions from figures to findings. What is asked, and how: `preflight.py`, `node_checks.py`, `rehearsal.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import brief, many

GB = 1e9
CLOCK_WARN = 1.0  # s: beyond it, lines of two nodes' logs and points of a curve stand in the wrong order
CLOCK_REFUSE = 30.0  # s: no time service runs there; certificates and signed requests (S3, munge) begin to fail
DISK_SPARE = 1.2  # times the forecast: logs, previews, the tracker's data base and the file system's own come on top
TEMPORARY_BYTES = 2 * GB  # Ray's logs and sockets, spilled objects, a compiler's files
TEMPORARY_LEAST = 0.1 * GB  # a rank's first minutes; Ray's logs alone take tens of megabytes
FILES_LEFT = 10_000  # of a file system's: a run makes some thousands
MEMORY_LOW = 2 * GB  # a rank's process with torch and DeepSpeed holds 1 GB before its first step
SHARED = "/dev/shm"  # noqa: S108 - the shared memory of reader processes
GPU_USED = 0.1  # share of a GPU's memory: the driver itself takes less
STORAGE_REFUSE = 0.1  # of what the step needs: the machines would wait nine tenths of their time
CACHED_SHARE = 0.5  # of the free memory: a data set below it is read once, then comes from the page cache
COMMUNICATION = 0.5  # share of a step that its all-reduce would take alone: above it, overlap hides it no longer
EAGER_TRACKER = 10.0  # s to open the tracker: beyond it the pages are slow as well

OPEN_PORTS = "Ray's workers and ranks take any free port: let nodes of the cluster reach each other on all of them"

State = Literal["ok", "warning", "refused", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What one check says of one node (or of all: node is empty)."""

    check: str
    state: State
    text: str
    node: str = ""

    def __str__(self) -> str:
        return f"{self.check}{f' on {self.node}' if self.node else ''}: {self.state}: {self.text}"


def gpus(node: str, facts: dict[str, Any], counted: float) -> list[Finding]:
    """counted: the GPUs that Ray was told of on this node."""
    there: list[dict[str, Any]] = facts["gpus"]
    if counted > len(there):
        why = facts["gpu_trouble"] or f"the driver shows {len(there)}"
        text = f"Ray was told of {counted:g} GPUs, but {why}: mend the driver, or start Ray with as many as there are"
        return [Finding("gpu", "refused", text, node)]
    if there and counted < len(there):
        text = f"the driver shows {len(there)} GPUs, Ray uses {counted:g} (`ray start --num-gpus`, the job's request)"
        return [Finding("gpu", "warning", text, node)]
    if not there:
        return [Finding("gpu", "ok", "none, and none asked for: ranks run on CPUs", node)]
    found = []
    for number, one in enumerate(there):
        if one["total"] and one["used"] > GPU_USED * one["total"]:
            text = f"{one['used'] / GB:.1f} of {one['total'] / GB:.0f} GB of GPU {number} are in use by others"
            found.append(Finding("gpu", "warning", text, node))
    size = f"{there[0]['total'] / GB:.0f} GB, " if there[0]["total"] else ""
    named = f"{len(there)} x {there[0]['name']}, {size}driver {there[0]['driver']}"
    return [Finding("gpu", "ok", named, node), *found]


def alike(nodes: dict[str, dict[str, Any]]) -> list[Finding]:
    """One kind of GPU and driver on all nodes: the slowest rank sets the pace of all."""
    kinds = {name: sorted({(one["name"], one["driver"]) for one in facts["gpus"]}) for name, facts in nodes.items()}
    if len({str(kind) for kind in kinds.values()}) < 2:
        return []
    told = "; ".join(f"{name}: {', '.join(' '.join(one) for one in kind) or 'no GPU'}" for name, kind in kinds.items())
    return [Finding("gpu", "warning", f"nodes differ, and the slowest sets the pace: {told}")]


def memory(node: str, facts: dict[str, Any], shared_needed: float) -> list[Finding]:
    """shared_needed: bytes that reader processes will pass through /dev/shm."""
    total, available = facts["memory"]["total"], facts["memory"]["available"]
    text, low = f"{available / GB:.1f} of {total / GB:.1f} GB available", available < MEMORY_LOW
    more = ", which is less than a rank takes" if low else ""
    found = [Finding("memory", "warning" if low else "ok", text + more, node)]
    shared = facts["shared_memory"]
    if shared is not None and shared < shared_needed:
        text = (
            f"{SHARED} has {shared / GB:.2f} GB free, `data.loader_workers` pass up to {shared_needed / GB:.2f} GB "
            "through it: fewer workers, or a larger one (containers: --shm-size, an emptyDir of medium Memory)"
        )
        found.append(Finding("memory", "warning", text, node))
    return found


def disk(node: str, facts: dict[str, Any], need: float, cache: float) -> list[Finding]:
    """need: bytes that the run will still write below the root; cache: bytes of remote shards to be kept there."""
    found = []
    root, temporary = facts["root"], facts["temporary"]
    told = f"{root['free'] / GB:.2f} GB free at {root['path']}, {need / GB:.2f} GB to be written"
    if root["free"] < need:
        found.append(Finding("disk", "refused", f"{told}: make room, or move `run.root`", node))
    elif root["files"] is not None and root["files"] < FILES_LEFT:
        text = f"only {root['files']:,} more files fit on the file system of {root['path']}: make room"
        found.append(Finding("disk", "warning", text, node))
    else:
        tight = root["free"] < DISK_SPARE * need
        found.append(Finding("disk", "warning" if tight else "ok", told + (", which is tight" if tight else ""), node))
    told = f"{temporary['free'] / GB:.2f} GB free in the temporary folder {temporary['path']}"
    if temporary["free"] < TEMPORARY_LEAST:
        text = f"{told}, {TEMPORARY_LEAST / GB:.2f} GB wanted at least for Ray's and the ranks' files: make room"
        found.append(Finding("disk", "refused", text, node))
    elif temporary["free"] < TEMPORARY_BYTES:
        text = f"{told}, {TEMPORARY_BYTES / GB:.2f} GB wanted for Ray's files"
        found.append(Finding("disk", "warning", text, node))
    if facts["cache"] and facts["cache"]["free"] < cache:
        text = f"{facts['cache']['free'] / GB:.2f} GB free at {facts['cache']['path']}, `data.cache.gigabytes` is more"
        found.append(Finding("disk", "warning", text, node))
    return found


def clocks(offsets: dict[str, tuple[float, float]]) -> list[Finding]:
    """offsets: (offset against the driver's clock, bound of its error) in seconds, by node.

    No clock is taken for the true one: a node is named that is far from the median of all, the driver's among them.
    Leases do not care (they never compare clocks); certificates, signed requests and the order of logs and points do.
    """
    middle = statistics.median_low([0.0, *(offset for offset, _ in offsets.values())])
    found = []
    for name, (offset, bound) in offsets.items():
        off = abs(offset - middle) - bound
        if off <= CLOCK_WARN:
            continue
        where = "ahead of" if offset > middle else "behind"
        told = f"{abs(offset - middle):.3f} s {where} the other clocks (measured to {bound:.3f} s)"
        if off > CLOCK_REFUSE:
            why = "certificates and signed requests fail, logs lie; start a time service (chrony) there"
            found.append(Finding("clock", "refused", f"{told}, more than {CLOCK_REFUSE:g} s: {why}", name))
        else:
            found.append(Finding("clock", "warning", f"{told}: its logs and curves are out of order", name))
    apart = max((abs(offset - middle) for offset, _ in offsets.values()), default=0.0)
    bound = max((bound for _, bound in offsets.values()), default=0.0)
    return found or [Finding("clock", "ok", f"all within {apart:.3f} s, measured to {bound:.3f} s")]


def shared_root(root: str, unseen: dict[str, list[str] | Exception]) -> list[Finding]:
    """unseen: by node those whose files it does not see there, or why it could not write its own."""
    found = []
    for name, others in unseen.items():
        if isinstance(others, Exception):
            text = f"`run.root` {root} cannot be written there: {brief(others)}"
            found.append(Finding("root", "refused", text, name))
        elif others:
            text = (
                f"`run.root` {root} is not one folder: it does not see what {', '.join(others)} wrote; "
                "give a folder on storage that all nodes mount"
            )
            found.append(Finding("root", "refused", text, name))
    return found or [Finding("root", "ok", f"{root} is one folder on {len(unseen)} nodes and can be written")]


def ports(failed: Sequence[tuple[str, str]], nodes: int) -> list[Finding]:
    """failed: (node, what it cannot)."""
    if nodes < 2:
        return [Finding("ports", "ok", "one node: nothing to reach")]
    by_node: dict[str, list[str]] = {}
    for name, line in failed:
        by_node.setdefault(name, []).append(line)
    return [
        Finding(
            "ports", "refused", f"{lines[0]}{f' (and {len(lines) - 1} more)' if lines[1:] else ''}; {OPEN_PORTS}", name
        )
        for name, lines in by_node.items()
    ] or [Finding("ports", "ok", f"{nodes} nodes reach each other on free ports")]


def names(nodes: dict[str, dict[str, Any]], on_gpus: bool) -> list[Finding]:
    """The address that a machine's own name stands for is what gloo tells other machines."""
    if len({facts["host"] for facts in nodes.values()}) < 2:
        return []
    state: State = "warning" if on_gpus else "refused"  # NCCL finds its interface itself; gloo serves barriers only
    text = (
        "its own name stands for {}, which other nodes cannot reach: mend /etc/hosts there, or set GLOO_SOCKET_IFNAME "
        "to the interface of the cluster's network"
    )
    return [
        Finding("ports", state, text.format(facts["own_name"]), name)
        for name, facts in nodes.items()
        if not facts["interface"] and facts["own_name"].startswith(("127.", "none"))
    ]


def tracker(uri: str, trouble: str, seconds: float, required: bool) -> list[Finding]:
    if not trouble:
        slow = seconds > EAGER_TRACKER
        text = f"{uri} can be written" + (f", but took {seconds:.0f} s" if slow else "")
        return [Finding("tracker", "warning" if slow else "ok", text)]
    if required:
        return [Finding("tracker", "refused", f"{uri}: {trouble}; start it, or leave out --require-tracker")]
    text = f"{uri}: {trouble}; training does not need it: all is kept on disk, `ldm mlflow sync` sends it later"
    return [Finding("tracker", "warning", text)]


def steps(measured: dict[str, Any], noun: str) -> list[Finding]:
    """One real step of each trained stage. noun: what a sample is called (`Data.noun`)."""
    nodes = many(len(set(measured["hosts"])), "node")
    where = f"{many(measured['world'], 'rank')} on {nodes} ({measured['device']})"
    found = []
    for name, one in measured["stages"].items():
        text = (
            f"{name}: {many(round(one['images']), noun)} in {one['step']:.3f} s on {where}, "
            f"{one['images'] / one['step']:.0f} {noun}s/s, {one['memory'] / GB:.2f} GB a rank"
        )
        lost = one["loss"] is None
        found.append(Finding("step", "warning" if lost else "ok", text + ("; its loss is not finite" if lost else "")))
    return found + [Finding("step", "ok", note) for note in measured["notes"]]


def reduce_seconds(measured: dict[str, Any], one: dict[str, Any]) -> float:
    """Seconds that the all-reduce of a stage's gradients takes alone; for more than one rank."""
    moved = 2 * (measured["world"] - 1) / measured["world"] * one["parameters"] * 4
    return float(moved / max(row["bandwidth"] for row in measured["collective"]))


def collective(measured: dict[str, Any]) -> list[Finding]:
    """The all-reduce as training makes it (its ranks, backend and interface) against the step it hides behind."""
    rows = measured["collective"]
    if not rows:
        return [Finding("collective", "ok", "one rank: nothing is reduced")]
    best = max(rows, key=lambda row: row["bandwidth"])
    text = (
        f"{'nccl' if measured['device'] == 'cuda' else 'gloo'}: {best['bandwidth'] / GB:.2f} GB/s at "
        f"{best['bytes'] / 2**20:.0f} MiB, {rows[0]['seconds'] * 1e3:.1f} ms for {rows[0]['bytes'] / 2**10:.0f} KiB"
    )
    shares = {name: reduce_seconds(measured, one) / one["step"] for name, one in measured["stages"].items()}
    heavy = [f"{share:.0%} of a step of one micro-batch in {n}" for n, share in shares.items() if share > COMMUNICATION]
    if not heavy:
        return [Finding("collective", "ok", text)]
    text += f"; gradients take {' and '.join(heavy)}: a larger micro-batch or more accumulation, or a faster network"
    return [Finding("collective", "warning", text)]


def storage(rates: dict[str, float | Exception], needs: dict[str, float], what: str, cached: bool) -> list[Finding]:
    """rates: bytes a second by node, or why nothing was read; needs: bytes a second that a node has to read, by stage;
    cached: all of it is read once, and kept."""
    hungry = max(needs, key=lambda name: needs[name])
    need, found = needs[hungry], []
    for node, rate in rates.items():
        if isinstance(rate, Exception):
            found.append(Finding("storage", "refused", f"cannot read {what}: {brief(rate)}", node))
            continue
        text = f"{rate / 1e6:.1f} MB/s of {what}, {need / 1e6:.1f} MB/s needed ({hungry})"
        if rate >= need:
            found.append(Finding("storage", "ok", text, node))
        elif rate < STORAGE_REFUSE * need and not cached:
            text = f"slow: {text}: the step would wait over nine tenths of the time; copy the data nearer"
            found.append(Finding("storage", "refused", text, node))
        else:
            more = " in the first epoch, then the data are cached" if cached else ""
            found.append(Finding("storage", "warning", f"slow: {text}: the step would wait{more}", node))
    return found


def outlook(stages: dict[str, Any], noun: str) -> list[Finding]:
    """Hours and bottleneck of each stage, in words. noun: what a sample is called (`Data.noun`)."""
    found = []
    for name, one in stages.items():
        second, rate = sorted(one["parts"].items(), key=lambda part: part[1])[1]
        text = (
            f"{name}: {duration(one['hours'])} at {one['images_per_second']:.0f} {noun}s/s; "
            f"bottleneck: {one['bottleneck']} ({second} would allow {rate:.0f})"
        )
        found.append(Finding("forecast", "ok", text))
    return found


def duration(hours: float) -> str:
    """Hours as a person says them."""
    if hours < 1:
        return f"{hours * 60:.1f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"
