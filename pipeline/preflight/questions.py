"""`ldm preflight`: what a run would stumble over: machines, clocks, network, storage, tracker, a training step.

Here is what is asked in which order. Machines answer by `node_checks.py`, ranks by `rehearsal.py`; what an answer
means, and every threshold with its reason, is in `verdicts.py`.
"""

from __future__ import annotations

import math
import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifacts import Store
from pipeline.cluster import reach
from pipeline.cluster.cluster import Cluster
from pipeline.cluster.nodes import Node, gather
from pipeline.cluster.stopping import Stopped
from pipeline.config import Config
from pipeline.errors import UserError, brief
from pipeline.planning import forecast
from pipeline.planning.fits import check_models
from pipeline.preflight import node_checks, verdicts
from pipeline.preflight.verdicts import Finding
from pipeline.stages import graph, precision

FIRST_ANSWER = 90.0  # seconds until a node answers for the first time: a process starts there, and reads Python
ANSWER = 60.0  # seconds for any other answer
READ_SECONDS, READ_BYTES = 5.0, 512e6  # of a node's reading; a slow store shows within seconds
PROBE_BYTES, PROBE_SHARE = 64 * 2**20, 0.1  # of test files, where nothing is there yet to be read; of the free space
PORTS = 3  # a node listens on so many free ports: ranks take any
CLOCK_TRIPS = 10  # round trips a node; the quickest bounds the error
ROOT_WAIT = 10.0  # seconds until a file written on one node is seen on another: NFS keeps folders for a few
REHEARSAL_TIMEOUT = 60  # seconds that a collective of the rehearsal may hang, where a run allows more


@dataclass
class Report:
    """What was found, in the order of the questions, and the figures behind it."""

    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    forecast: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, findings: Sequence[Finding]) -> None:
        self.findings += findings
        for finding in findings:
            print(f"preflight: {finding}", flush=True)

    @property
    def refused(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.state == "refused"]


@dataclass(frozen=True)
class Storage:
    """What training reads: files or addresses (none: not there yet), the bytes of all of it (0: not known).

    image_bytes: of an image, by the stages that read it.
    """

    what: str
    places: list[str]
    total_bytes: float
    image_bytes: dict[str, float]


def preflight(config: Config, require_tracker: bool = False) -> Report:
    """Ask everything. What a check finds is a finding, no exception; UserError where nothing can be asked at all."""
    begun, report = time.monotonic(), Report()
    config = graph.absolute(config)
    store = Store(config.run.root)
    store.create()
    folder = store.root / "preflight" / secrets.token_hex(8)
    limits = {"max_failures": 0, "collective_timeout": min(REHEARSAL_TIMEOUT, config.cluster.collective_timeout)}
    try:
        folder.mkdir(parents=True)
        with Cluster(config.cluster.model_copy(update=limits)) as cluster:
            _ask(report, config, cluster, folder, require_tracker)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what was made here a moment ago; ranks that wrote there are gone
    report.seconds = time.monotonic() - begun
    return report


def _ask(report: Report, config: Config, cluster: Cluster, folder: Path, require_tracker: bool) -> None:
    """Machines before anything else: Ray would wait without an end for one that it cannot reach."""
    nodes = cluster.nodes()
    remote = config.data.source.kind == "webdataset" and "://" in config.data.source.path
    cache = (config.data.cache.path or tempfile.gettempdir()) if remote else None
    answers = gather([node.begin(node_checks.facts, config.run.root, cache) for node in nodes], FIRST_ANSWER)
    silent = [(node, error) for node, error in zip(nodes, answers, strict=True) if isinstance(error, Exception)]
    if silent:
        report.add([Finding("node", "refused", f"gives no answer: {why(n, e)}", n.name) for n, e in silent])
        return
    known = {node.name: answer for node, answer in zip(nodes, answers, strict=True)}
    report.figures["nodes"] = {n.name: {**known[n.name], "address": n.address, "cpus": n.cpus} for n in nodes}
    config = precision.resolve(config, cluster)
    steps = graph.plan(config, Store(config.run.root))
    if all(step.artifact for step in steps):
        report.add([Finding("step", "skipped", "all stages are finished: nothing will run")])
        return
    forecast.remote_cache(config, trained=steps[1].artifact is not None)
    need = bytes_to_come(config, steps)
    for node in nodes:
        facts = known[node.name]
        report.add(verdicts.gpus(node.name, facts, node.gpus))
        report.add(verdicts.memory(node.name, facts, shared_memory_needed(config)))
        report.add(verdicts.disk(node.name, facts, need, config.data.cache.gigabytes * verdicts.GB))
    report.add(verdicts.alike(known))
    offsets = clock_offsets(nodes)
    report.figures["clocks"] = {name: {"offset": offset, "bound": bound} for name, (offset, bound) in offsets.items()}
    report.add(verdicts.clocks(offsets))
    report.add(verdicts.shared_root(config.run.root, who_sees(nodes, folder)))
    report.add(verdicts.ports(unreachable(nodes), len(nodes)))
    report.add(verdicts.names(known, any(node.gpus for node in nodes)))
    report.add(verdicts.tracker(*ask_tracker(config), require_tracker))
    if report.refused:
        report.add([Finding("step", "skipped", "no step was taken: first mend what is refused")])
    elif steps[1].artifact and steps[3].artifact:
        report.add([Finding("step", "skipped", "both trained stages are finished")])
    else:
        _rehearse(report, config, steps, cluster, nodes, folder)


# ---- machines --------------------------------------------------------------------------------------------------------


def why(node: Node, error: Exception) -> str:
    """Why a node gives no answer: a connection from here that fails, else what Ray says; often it is a firewall."""
    port = node.port()
    closed = reach.reach([(f"Ray's worker on {node.name}", node.address, port)]) if port else []
    return f"{closed[0] if closed else brief(error)}; {verdicts.OPEN_PORTS}"


def bytes_to_come(config: Config, steps: list[graph.Step]) -> float:
    """Bytes that the stages which are not finished will still write below the root.

    Latents are counted where the number of images is known: not of tars that no one has indexed yet.
    """
    from pipeline.data import sources
    from pipeline.data.sources import digests_folder_of
    from pipeline.past.inventory import size

    channels, sides = check_models(config)
    images, ingest = 0, steps[0].artifact
    if ingest is None and config.data.source.kind != "webdataset":
        images = len(sources.open_listing(config.data, digests_folder_of(config.run.root)).rows)
    needs = forecast.disk_bytes(config, steps, forecast.parameter_counts(config), channels * math.prod(sides), images)
    total = 0.0
    for step in steps:
        if step.artifact or step.stage not in needs:
            continue
        there = size(Store(config.run.root).folder(step.stage, step.fingerprint))
        total += max(0.0, sum(needs[step.stage].values()) - there)
    return total


def shared_memory_needed(config: Config) -> float:
    """Bytes of /dev/shm that the reader processes of a node's ranks pass their batches through, if all are there."""
    from pipeline.data.loader import PREFETCH

    images = max(config.autoencoder.training.batch_size, config.diffusion.training.batch_size)
    readers = config.data.loader_workers * (PREFETCH + 1.0) if config.data.loader_workers else 0.0
    return images * config.data.channels * math.prod(config.data.sides) * readers


def clock_offsets(nodes: Sequence[Node], trips: int = CLOCK_TRIPS) -> dict[str, tuple[float, float]]:
    """(offset, bound) in seconds of each node's clock against the driver's, by Cristian's method.

    A node's answer was made somewhere within the round trip: offset = answer - middle, wrong by at most half of the
    trip. The quickest trip counts. The trip is timed by the monotonic clock, so that a step of the driver's own clock
    meanwhile falsifies one trip at most. A node that gives no answer any more is left out.
    """
    found: dict[str, tuple[float, float]] = {}
    for node in nodes:
        for _ in range(trips):
            wall, begun = time.time(), time.monotonic()
            answer = gather([node.begin(node_checks.wall_clock)], ANSWER)[0]
            half = (time.monotonic() - begun) / 2
            if isinstance(answer, Exception):
                break
            if node.name not in found or half < found[node.name][1]:
                found[node.name] = answer - (wall + half), half
    return found


def who_sees(nodes: Sequence[Node], folder: Path) -> dict[str, list[str] | Exception]:
    """For each node those whose files it does not see in a new folder of the root, or why it could not write its own.

    The folder was made here: a node that sees the others' files sees the driver's root.
    """
    everyone = [node.name for node in nodes]
    asked = [node.begin(node_checks.meet, str(folder), i, len(nodes), ROOT_WAIT) for i, node in enumerate(nodes)]
    answers = gather(asked, ANSWER)
    return {
        name: answer if isinstance(answer, Exception) else [everyone[number] for number in answer]
        for name, answer in zip(everyone, answers, strict=True)
    }


def unreachable(nodes: Sequence[Node]) -> list[tuple[str, str]]:
    """(node, line) for each connection between two nodes that does not come about, on free ports as ranks take them."""
    if len(nodes) < 2:
        return []
    opened = gather([node.begin(node_checks.listen, node.address, PORTS) for node in nodes], ANSWER)
    found, targets = [], []
    for node, ports in zip(nodes, opened, strict=True):
        if isinstance(ports, Exception):
            found.append((node.name, f"cannot listen on its address {node.address}: {brief(ports)}"))
        else:
            targets += [(node.name, node.address, port) for port in ports]
    asked = [node.begin(reach.reach, [t for t in targets if t[0] != node.name]) for node in nodes]
    for node, lines in zip(nodes, gather(asked, ANSWER), strict=True):
        found += [(node.name, line) for line in ([brief(lines)] if isinstance(lines, Exception) else lines)]
    return found


def ask_tracker(config: Config) -> tuple[str, str, float]:
    """(address, what is wrong or "", seconds): whether the tracker can be reached and written."""
    import logging

    from pipeline.tracking.links import public_uri, resolve_uri
    from pipeline.tracking.mlflow_calls import Down, Refused, default_tracker
    from pipeline.tracking.mlflow_store import MlflowStore

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    uri, begun, trouble = resolve_uri(config.run.root, config.tracking.uri), time.monotonic(), ""
    try:
        with default_tracker(uri):  # MLflow would keep it in the environment
            MlflowStore(uri, Path(config.run.root)).experiment(config.tracking.experiment)
    except (Down, Refused) as error:
        trouble = str(error)
    return public_uri(uri), trouble, time.monotonic() - begun


# ---- a step, the storage it reads, what follows ----------------------------------------------------------------------


def _rehearse(
    report: Report, config: Config, steps: list[graph.Step], cluster: Cluster, nodes: list[Node], folder: Path
) -> None:
    from pipeline.preflight.rehearsal import rehearse

    try:
        measured = rehearse(config, steps, cluster, folder)
    except Stopped:
        raise
    except Exception as error:  # a run would end so too; what Ray Train raises when a rank fails says what it was
        text = str(error) if isinstance(error, UserError) else f"a rank failed: {brief(error)}"
        report.add([Finding("step", "refused", text)])
        return
    report.figures["rehearsal"] = measured
    report.add(verdicts.steps(measured, config.data.noun))
    report.add(verdicts.collective(measured))
    known = report.figures["nodes"]
    readers = [node for node in nodes if known[node.name]["host"] in measured["hosts"]]  # a head may have no rank
    storage = what_is_read(config, steps)
    rates = read_rates(readers, storage, folder, min(known[node.name]["root"]["free"] for node in readers))
    told = {name: rate for name, rate in rates.items() if isinstance(rate, float)}
    report.figures["storage"] = {"rates": told, "image_bytes": storage.image_bytes, "what": storage.what}
    room = verdicts.CACHED_SHARE * min(known[node.name]["memory"]["available"] for node in readers)
    if any("://" in place for place in storage.places):
        room = config.data.cache.gigabytes * verdicts.GB
    needs = {
        name: one["images"] / one["step"] * storage.image_bytes[name] / len(readers)
        for name, one in measured["stages"].items()
        if name in storage.image_bytes
    }
    report.add(verdicts.storage(rates, needs, storage.what, cached=0 < storage.total_bytes < room))
    report.forecast = forecast_of(config, measured, storage.image_bytes, sum(told.values()))
    report.add(verdicts.outlook(report.forecast, config.data.noun))


def what_is_read(config: Config, steps: list[graph.Step]) -> Storage:
    """What the next training reads: latents, shards, foreign tars; a file of our own in the root where none are yet."""
    from pipeline.data import sources
    from pipeline.data.latent_pool import shard_paths
    from pipeline.data.sources import digests_folder_of

    ingest, autoencoder, encode, _ = [step.artifact for step in steps[:4]]
    channels, sides = check_models(config)
    images = sum(ingest.summary["images"].values()) if ingest else 0
    each = {"autoencoder": float(config.data.channels * math.prod(config.data.sides))}
    latent = {"diffusion": float(2 * channels * math.prod(sides) * 2)}  # mean and log-variance in float16
    if autoencoder:
        paths, what, each = shard_paths(encode, "train") if encode else [], "the latents", latent
    elif config.data.source.kind == "webdataset":
        tars = sources.tar_digests(config.data.source, digests_folder_of(config.run.root))
        return Storage("the source's tars", [tar.location for tar in tars], float(sum(tar.bytes for tar in tars)), each)
    else:
        paths, what = sorted(ingest.path.rglob("*.tar")) if ingest else [], "the image shards"
        each |= latent
    total = float(sum(path.stat().st_size for path in paths))
    if paths and images and not autoencoder:
        each["autoencoder"] = total / images
    return Storage(what if paths else "a test file in the root", [str(path) for path in paths], total, each)


def read_rates(nodes: Sequence[Node], storage: Storage, folder: Path, free: float) -> dict[str, float | Exception]:
    """Bytes a second that each node reads while all of them do, each beginning with other files, or what went wrong.

    free: bytes on the root, of which test files take a small part.
    """
    places, wrote = [storage.places] * len(nodes), [None] * len(nodes)
    if not storage.places:
        places = [[str(folder / f"{number}.probe")] for number in range(len(nodes))]
        size = min(PROBE_BYTES, int(PROBE_SHARE * free / len(nodes)))
        wrote = gather(
            [n.begin(node_checks.write_probe, at[0], size) for n, at in zip(nodes, places, strict=True)], ANSWER
        )
    asked = [
        node.begin(node_checks.read_rate, mine, READ_SECONDS, READ_BYTES, number)
        for number, (node, mine) in enumerate(zip(nodes, places, strict=True))
    ]
    answers = gather(asked, ANSWER)
    return {node.name: trouble or answer for node, trouble, answer in zip(nodes, wrote, answers, strict=True)}


def forecast_of(
    config: Config, measured: dict[str, Any], image_bytes: dict[str, float], bandwidth: float
) -> dict[str, Any]:
    """By stage: images a second, hours, what holds it up (`bottleneck`), and the rate that each part would allow.

    bandwidth: bytes/s of all nodes together; image_bytes: what an image takes of it, by the stages that read there.
    """
    found: dict[str, Any] = {}
    for name, one in measured["stages"].items():
        training = getattr(config, name).training
        parts = {
            "the step": one["images"] / one["step"],
            "the loader": one["images"] / one["load"] * max(1, config.data.loader_workers),
        }
        if name in image_bytes:
            parts["the storage"] = max(1.0, bandwidth) / image_bytes[name]
        if measured["collective"]:  # none for one rank
            parts["the collective"] = training.batch_size / verdicts.reduce_seconds(measured, one)
        slowest = min(parts, key=lambda part: parts[part])
        rate = parts[slowest]
        if not config.data.loader_workers:  # the rank reads, then steps: the times add up
            rate = min(rate, 1 / (1 / parts["the step"] + 1 / parts["the loader"]))
        hours = training.steps * training.batch_size / rate / 3600
        found[name] = {"images_per_second": rate, "hours": hours, "bottleneck": slowest, "parts": parts}
    return found
