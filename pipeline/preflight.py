"""`ldm preflight`: what a run would stumble over: machines, clocks, network, storage, tracker, a training step.

Here is what is asked in which order. Machines answer by `node_checks.py`, ranks by `rehearsal.py`; what an answer
means, and every threshold with its reason, is in `verdicts.py`.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import forecast, graph, node_checks, verdicts
from pipeline.artifacts import Artifact, Store
from pipeline.cluster import Cluster, Stopped
from pipeline.config import Config, check_models
from pipeline.errors import UserError
from pipeline.nodes import Node, gather
from pipeline.verdicts import Finding, Need

ANSWER = 60.0  # seconds that a node has to answer; the first question starts a process there
READ_SECONDS, READ_BYTES = 5.0, 512e6  # of a node's reading; a slow store shows within seconds
PROBE_BYTES = 128 * 2**20  # of a test file, where nothing is there yet to be read
PORTS = 3  # a node listens on so many free ports: ranks take any
CONNECT = 5.0  # seconds a connection may take: within a site it takes milliseconds
CLOCK_TRIPS = 10  # round trips a node; the quickest bounds the error
REHEARSAL_TIMEOUT = 60  # seconds that a collective of the rehearsal may hang, where a run allows more
SAMPLE_FILES = 512  # files of a folder or table that are looked at


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
    """What training reads: files or addresses, how many images and bytes they hold (0: not known)."""

    places: list[str]
    image_bytes: float
    total_bytes: float
    what: str


def preflight(config: Config, require_tracker: bool = False) -> Report:
    """Ask everything. What a check finds is a finding, no exception; UserError where nothing can be asked at all."""
    begun, report = time.monotonic(), Report()
    config = graph.absolute(config)
    store = Store(config.run.root)
    store.create()
    folder = store.root / "preflight" / secrets.token_hex(8)
    limits = {"max_failures": 0, "collective_timeout": min(REHEARSAL_TIMEOUT, config.cluster.collective_timeout)}
    with Cluster(config.cluster.model_copy(update=limits)) as cluster:
        try:
            folder.mkdir(parents=True)
            config = graph.resolve(config, cluster)
            steps = graph.plan(config, store)
            sizes = forecast.parameter_counts(config)
            nodes = cluster.nodes()
            _ask_machines(report, config, nodes, bytes_to_come(config, steps, sizes), folder)
            report.add(verdicts.tracker(*ask_tracker(config), require_tracker))
            if report.refused:
                report.add([Finding("step", "skipped", "no step was taken: first mend what is refused")])
            else:
                _rehearse(report, config, steps, cluster, nodes, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # what was made here a moment ago
    report.seconds = time.monotonic() - begun
    return report


# ---- machines --------------------------------------------------------------------------------------------------------


def _ask_machines(report: Report, config: Config, nodes: list[Node], need: float, folder: Path) -> None:
    cache = _cache_folder(config)
    answers = gather([node.begin(node_checks.facts, config.run.root, cache) for node in nodes], ANSWER)
    silent = [Finding("node", "refused", f"gives no answer: {_brief(a)}", n.name) for n, a in _failed(nodes, answers)]
    report.add(silent)
    known = [(node, answer) for node, answer in zip(nodes, answers, strict=True) if isinstance(answer, dict)]
    report.figures["nodes"] = {node.name: {**a, "address": node.address, "cpus": node.cpus} for node, a in known}
    for node, answer in known:
        report.add(verdicts.gpus(node.name, answer, node.gpus))
    report.add(verdicts.alike({node.name: answer for node, answer in known}))
    for node, answer in known:
        report.add(verdicts.memory(node.name, answer, shared_memory_needed(config, node)))
        cached = config.data.cache.gigabytes * 1e9 if cache else 0.0
        report.add(verdicts.disk(node.name, answer, need, cached))
    nodes = [node for node, _ in known]
    offsets = clock_offsets(nodes)
    report.figures["clocks"] = {name: {"offset": offset, "bound": bound} for name, (offset, bound) in offsets.items()}
    report.add(verdicts.clocks(offsets))
    report.add(verdicts.shared_root(config.run.root, [node.name for node in nodes], who_sees(nodes, folder / "tokens")))
    report.add(verdicts.ports(unreachable(nodes), len(nodes)))
    report.add(verdicts.names({node.name: answer for node, answer in known}, any(node.gpus for node in nodes)))


def _failed(nodes: Sequence[Node], answers: Sequence[Any]) -> list[tuple[Node, Exception]]:
    return [(node, answer) for node, answer in zip(nodes, answers, strict=True) if isinstance(answer, Exception)]


def _brief(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _cache_folder(config: Config) -> str | None:
    """The node-local folder that remote shards are kept in, if there are any."""
    source = config.data.source
    if source.kind != "webdataset" or "://" not in source.path:
        return None
    return config.data.cache.path or tempfile.gettempdir()


def bytes_to_come(config: Config, steps: list[graph.Step], sizes: dict[str, int]) -> float:
    """Bytes that the stages which are not finished will still write below the root."""
    channels, side = check_models(config)
    needs = forecast.disk_bytes(config, steps, sizes, channels * side * side)
    total = 0.0
    for step in steps:
        if step.artifact or step.stage not in needs:
            continue
        folder = Store(config.run.root).folder(step.stage, step.fingerprint)
        there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
        total += max(0.0, sum(needs[step.stage].values()) - there)
    return total


def shared_memory_needed(config: Config, node: Node) -> float:
    """Bytes of /dev/shm that the reader processes of a node's ranks pass their batches through."""
    from pipeline.data.loader import PREFETCH

    if not config.data.loader_workers:
        return 0.0
    images = max(
        config.autoencoder.training.batch_size, config.diffusion.training.batch_size
    )  # all ranks here, at most
    return images * config.data.channels * config.data.size**2 * config.data.loader_workers * (PREFETCH + 1.0)


def clock_offsets(nodes: Sequence[Node], trips: int = CLOCK_TRIPS) -> dict[str, tuple[float, float]]:
    """(offset, bound) in seconds of each node's clock against the driver's, by Cristian's method.

    A node's answer was made somewhere within the round trip: offset = answer - middle, wrong by at most half of the
    trip. The quickest trip counts. The trip is timed by the monotonic clock, so that a step of the driver's own clock
    meanwhile falsifies one trip at most.
    """
    found: dict[str, tuple[float, float]] = {}
    for node in nodes:
        best: tuple[float, float] | None = None
        for _ in range(trips):
            wall, begun = time.time(), time.monotonic()
            answer = gather([node.begin(node_checks.wall_clock)], ANSWER)[0]
            half = (time.monotonic() - begun) / 2
            if isinstance(answer, float) and (best is None or half < best[1]):
                best = answer - (wall + half), half
        if best:
            found[node.name] = best
    return found


def who_sees(nodes: Sequence[Node], folder: Path) -> dict[str, tuple[dict[str, str], str]]:
    """For each node and the driver: the tokens it sees of those that all wrote, and why it could not write its own."""
    tokens = {node.name: secrets.token_hex(8) for node in nodes}
    node_checks.leave_token(str(folder), "driver", secrets.token_hex(8))
    wrote = gather([n.begin(node_checks.leave_token, str(folder), n.name, tokens[n.name]) for n in nodes], ANSWER)
    want = 1 + sum(not isinstance(answer, Exception) for answer in wrote)
    wait = node_checks.ROOT_WAIT
    seen = gather([n.begin(node_checks.read_tokens, str(folder), wait, want) for n in nodes], ANSWER)
    found = {"driver": (node_checks.read_tokens(str(folder), wait, want), "")}
    for node, written, read in zip(nodes, wrote, seen, strict=True):
        trouble = _brief(written) if isinstance(written, Exception) else ""
        found[node.name] = (read if isinstance(read, dict) else {}, trouble)
    return found


def unreachable(nodes: Sequence[Node]) -> list[tuple[str, str]]:
    """(node, line) for each connection between two nodes that does not come about, on free ports as ranks take them."""
    if len(nodes) < 2:
        return []
    opened = gather([node.begin(node_checks.listen, node.address, PORTS) for node in nodes], ANSWER)
    found = [
        (node.name, f"cannot listen on its address {node.address}: {_brief(e)}") for node, e in _failed(nodes, opened)
    ]
    open_ = [(node, ports) for node, ports in zip(nodes, opened, strict=True) if isinstance(ports, list)]
    asked = []
    for node in nodes:
        targets = [(other.name, other.address, port) for other, ports in open_ for port in ports if other is not node]
        asked.append(node.begin(node_checks.reach, targets, CONNECT))
    for node, lines in zip(nodes, gather(asked, ANSWER + CONNECT * PORTS * len(nodes)), strict=True):
        lines = [_brief(lines)] if isinstance(lines, Exception) else lines
        found += [(node.name, f"cannot reach {line}") for line in lines]
    gather([node.begin(node_checks.hang_up) for node in nodes], ANSWER)
    return found


def ask_tracker(config: Config) -> tuple[str, str, float]:
    """(address, what is wrong or "", seconds): whether the tracker can be reached and written."""
    import logging

    from pipeline.mlflow_store import Down, MlflowStore, Refused, default_tracker
    from pipeline.tracking import public_uri, resolve_uri

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
    from pipeline.rehearsal import rehearse

    try:
        measured = rehearse(config, steps, cluster, folder)
    except UserError as error:
        report.add([Finding("step", "refused", str(error))])
        return
    except Stopped:
        raise
    except Exception as error:  # what Ray Train raises when a rank fails; the line says what it was
        report.add([Finding("step", "refused", f"a rank failed: {_brief(error)}")])
        return
    report.figures["rehearsal"] = measured
    report.add(verdicts.steps(measured))
    report.add(verdicts.collective(measured))
    storage = what_is_read(config, steps)
    known = report.figures["nodes"]
    readers = [node for node in nodes if known[node.name]["host"] in measured["hosts"]]  # a head may have no rank
    rates = read_rates(readers, storage, folder)
    report.figures["storage"] = {"rates": rates, "image_bytes": storage.image_bytes, "what": storage.what}
    needs = needs_of(config, measured, storage)
    free = min(a["memory"]["available"] for a in known.values())
    report.add(verdicts.storage(rates, needs, storage.what, storage.total_bytes, free))
    report.forecast = forecast_of(config, steps, measured, needs, rates)
    report.add(verdicts.outlook(report.forecast))


def what_is_read(config: Config, steps: list[graph.Step]) -> Storage:
    """What the first stage that trains reads: the shards if they are there, else the tars or files they come from."""
    from pipeline.data import sources
    from pipeline.stages.ingest import cache_folder

    ingest: Artifact | None = steps[0].artifact
    source = config.data.source
    raw = float(config.data.channels * config.data.size**2)
    if source.kind == "webdataset":
        tars = sources.tar_digests(source, cache_folder(config.run.root))
        total = float(sum(tar.bytes for tar in tars))
        count = sum(ingest.summary["images"].values()) if ingest else 0
        return Storage([tar.location for tar in tars], total / count if count else raw, total, "the source's tars")
    if ingest:
        files = {n: e["bytes"] for n, e in ingest.manifest["files"].items() if n.endswith(".tar")}
        total, count = float(sum(files.values())), sum(ingest.summary["images"].values())
        return Storage([str(ingest.path / name) for name in files], total / max(1, count), total, "the image shards")
    if source.kind in ("folder", "table"):
        rows = sources.open_listing(config.data, cache_folder(config.run.root)).rows
        files_ = [str(row.location) for row in rows[:: max(1, len(rows) // SAMPLE_FILES)]]
        mean = sum(Path(file).stat().st_size for file in files_) / len(files_)
        return Storage(files_, raw, mean * len(rows), "the source's files")
    return Storage([], raw, 0.0, "a test file in the root")


def read_rates(
    nodes: Sequence[Node], storage: Storage, folder: Path, read: Callable[[str], Any] = node_checks.read_cold
) -> dict[str, float]:
    """Bytes a second that each node reads while all of them do, each beginning with other files; 0: nothing came."""
    places = [storage.places] * len(nodes)
    if not storage.places:
        probes = gather([node.begin(node_checks.write_probe, str(folder), PROBE_BYTES) for node in nodes], ANSWER)
        places = [[probe] if isinstance(probe, str) else [] for probe in probes]
    asked = [
        node.begin(node_checks.read_rate, mine, READ_SECONDS, READ_BYTES, number, read)
        for number, (node, mine) in enumerate(zip(nodes, places, strict=True))
    ]
    answers = gather(asked, ANSWER)
    return {
        node.name: answer["bytes"] / max(answer["seconds"], 1e-9) if isinstance(answer, dict) else 0.0
        for node, answer in zip(nodes, answers, strict=True)
    }


def needs_of(config: Config, measured: dict[str, Any], storage: Storage) -> dict[str, Need]:
    """What each stage could eat if nothing held it up: images a second over all ranks, and the bytes of one."""
    channels, side = check_models(config)
    latent = float(2 * channels * side * side * 2)  # mean and log-variance in float16
    sizes = {"autoencoder": storage.image_bytes, "diffusion": latent}
    share = 1 / len(set(measured["hosts"]))  # of the reading that one node does
    return {name: Need(one["images"] / one["step"], sizes[name], share) for name, one in measured["stages"].items()}


def forecast_of(
    config: Config, steps: list[graph.Step], measured: dict[str, Any], needs: dict[str, Need], rates: dict[str, float]
) -> dict[str, Any]:
    """By stage: images a second, hours, what holds it up (`bottleneck`), and the rate that each part would allow."""
    found: dict[str, Any] = {}
    for name, one in measured["stages"].items():
        training = getattr(config, name).training
        parts = {
            "the step": needs[name].images,
            "the loader": one["images"] / one["load"] * max(1, config.data.loader_workers),
            "the storage": sum(rates.values()) / max(1.0, needs[name].image_bytes),
        }
        if measured["collective"]:  # none for one rank
            parts["the collective"] = verdicts.collective_rate(measured, one, training)
        slowest = min(parts, key=lambda part: parts[part])
        rate = parts[slowest]
        if not config.data.loader_workers:  # the rank reads, then steps: the times add up
            rate = min(rate, 1 / (1 / parts["the step"] + 1 / parts["the loader"]))
        left = training.steps * training.batch_size
        found[name] = {"images_per_second": rate, "hours": left / rate / 3600, "bottleneck": slowest, "parts": parts}
    ingest, encode = steps[0].artifact, measured["stages"].get("autoencoder", {}).get("encode")
    if ingest and encode and not steps[2].artifact:
        images = sum(ingest.summary["images"].values()) * len(config.latents.views)
        found["encode"] = {"images_per_second": encode * measured["world"]}
        found["encode"]["hours"] = images / found["encode"]["images_per_second"] / 3600
    return found
