"""What the trained stages share: from the driver's arguments to a rank's engine and loop, and to the files of weights.

What is trained and on which loss is in `autoencoder.py` and `diffusion.py`; how, in `loop.py` and `engine.py`.
"""

from __future__ import annotations

import importlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import TAKEN_OVER, Artifact, Writer, lease_file
from pipeline.cluster.said import Said
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import canonical_json, disk_trouble, read_json, write_json
from pipeline.networks import save_weights
from pipeline.schema.training import Training
from pipeline.tasks import begin as beginning
from pipeline.tasks.shown import Progress
from pipeline.tracking.tracker import Spool

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster
    from pipeline.training.engine import Engine

FLOPS = "flops.json"  # of the folder where driver and ranks leave each other files
STOP_POLL = 1.0  # seconds between two looks at the stop file, which may lie on a network file system


def train(
    name: str,
    config: Config,
    inputs: dict[str, Artifact],
    writer: Writer,
    cluster: Cluster,
    spool: Spool,
    first_weights: Path | None,
) -> dict[str, Any]:
    """Train one stage on the cluster; returns the loop's summary. The weights lie in the artifact when it returns.

    first_weights: the file to begin with (`begin.planned_weights`); None: the network's own.
    """
    from pipeline.data.order import lanes, largest_world
    from pipeline.training import meter

    module = importlib.import_module(f"pipeline.tasks.{name}")
    training: Training = getattr(config, name).training
    lane_count = config.data.lanes or lanes(training.batch_size)

    def world() -> int:
        """Ranks of an attempt: as many workers as there is room for and as divide the lanes."""
        room = cluster.workers()
        fits = largest_world(lane_count, room)
        if fits < room:
            print(
                f"{name}: {fits} of {room} workers, since ranks must divide the {lane_count} lanes of a batch",
                flush=True,
            )
        spool.tags({"ldm.world_size": str(fits)})
        return fits

    # A folder for each holder: one that was taken over, and lives on behind a network that is cut, tells us nothing
    mail = writer.work / "mail" / f"{writer.token:06d}"
    mail.mkdir(parents=True, exist_ok=True)
    progress, said = Progress(name, mail / "progress.json", config.data.noun), Said(mail / "said", name)

    def watch() -> None:
        writer.lease.check()
        progress()
        said()
        if progress.last > 0 and not (mail / FLOPS).exists():  # here: ranks have no second to spare for counting
            write_json(mail / FLOPS, counted(module, config, inputs))

    values = config.model_dump(mode="json", by_alias=True)
    if first_weights:  # as planned, of a student its teacher too: an alias may move, ranks may run in another folder
        values[name]["training"]["init_from"] = str(first_weights)
    arguments = {
        "stage": name,
        "config": values,
        "inputs": {key: str(artifact.path) for key, artifact in inputs.items()},
        "path": str(writer.path),
        "mail": str(mail),
        "token": writer.token,
        "run": spool.run,
        "begin_from": other_run(name, training, writer),
        "first_weights": str(first_weights) if first_weights else None,
        "flops": counted(module, config, inputs) if training.compile == "auto" else 0,  # takes a second or two
    }
    try:
        cluster.train(rank, arguments, mail, world, watch)
    finally:
        said()
    writer.lease.check()
    if not (mail / "summary.json").exists():  # the ranks saw it before this machine: network file systems cache folders
        raise UserError(f"{writer.work / 'lease'}: {TAKEN_OVER}; this process stops")
    summary = dict(read_json(mail / "summary.json"))
    print(meter.line(name, summary["efficiency"], config.data.noun), flush=True)
    return summary


def counted(module: Any, config: Config, inputs: dict[str, Artifact]) -> int:
    """Model FLOPs of a training sample, a forward pass and twice that backward; 0 of a kind of the user's own whose
    code cannot run without numbers."""
    try:
        return 3 * int(module.flops(config, inputs))
    except (NotImplementedError, RuntimeError):
        return 0


def read_flops(path: Path) -> int | None:
    """What the driver has counted, once it has."""
    return int(read_json(path)) if path.exists() else None


def other_run(name: str, training: Training, writer: Writer) -> list[Any] | None:
    """[checkpoints, position] of a run that differs in its number of steps only, and goes the furthest along our way.

    Two such runs are one up to where the learning rate of either begins to depend on the number of steps.
    """
    from pipeline.training.arithmetic import stable_steps
    from pipeline.training.checkpoint import listing

    ours = json.loads(canonical_json({"recipe": writer.recipe, "inputs": writer.input_contents()}))  # as read back
    best, found = 0, None
    for path in writer.path.parent.glob("*/work/recipe.json"):
        theirs = read_json(path)
        steps = theirs["recipe"]["training"]["steps"]
        theirs["recipe"]["training"]["steps"] = training.steps
        if theirs != ours or steps == training.steps:
            continue
        limit = min(stable_steps(training.model_copy(update={"steps": steps})), stable_steps(training))
        folder = path.parent / "checkpoints"
        for saved in listing(folder):
            whole = (folder / saved.name / "manifest.json").exists()  # the other run may be writing one just now
            if whole and best < saved.position <= limit * training.batch_size:
                best, found = saved.position, [str(folder), saved.position]
    write_json(writer.work / "recipe.json", ours)
    if found and not listing(writer.work / "checkpoints"):
        print(
            f"{name}: goes on from step {best // training.batch_size} of another run of its kind ({found[0]})",
            flush=True,
        )
    return found


def rank(arguments: dict[str, Any]) -> None:
    """One rank's whole life. A user's mistake is left in `outcome.json` for the driver."""
    mail = Path(arguments["mail"])
    try:
        with disk_trouble():
            _rank(arguments, Path(arguments["path"]) / "work", mail)
    except UserError as error:
        with suppress(OSError):  # on a full disk the driver has it from the exception
            write_json(mail / "outcome.json", {"error": str(error)})
        raise


def _rank(arguments: dict[str, Any], work: Path, mail: Path) -> None:
    import torch

    from pipeline.cluster.on_rank import device, preempted
    from pipeline.generate import adapters
    from pipeline.training import compiling, loop
    from pipeline.training import snapshots as averages
    from pipeline.training.checkpoint import listing
    from pipeline.training.ranks import open_ranks

    torch.set_num_threads(arguments["threads"])
    config = Config.model_validate(arguments["config"])
    name, ranks = arguments["stage"], open_ranks(device())
    training: Training = getattr(config, name).training
    module = importlib.import_module(f"pipeline.tasks.{name}")
    inputs = {key: Artifact.load(path) for key, path in arguments["inputs"].items()}
    model, task = module.build(config, inputs, ranks)
    say = sayer(mail / "said" / f"{ranks.rank}.txt")
    say_first: Callable[[str], None] = say if ranks.first else lambda _: None
    resumes = bool(listing(work / "checkpoints"))
    adapter = None
    if arguments["first_weights"]:
        file = Path(arguments["first_weights"])
        what = module.options(config, inputs) if name == "diffusion" else None
        adapter = beginning.put(model, what, inputs, file, config, (lambda _: None) if resumes else say_first)
    training = compiling.settled(training, ranks, work, arguments["flops"], say_first)
    engine = task.engine(model, training, ranks)
    begin = (Path(given[0]), int(given[1])) if (given := arguments["begin_from"]) else None
    snapshots = Path(arguments["path"]) / averages.FOLDER if training.snapshot_every else None
    if snapshots and begin and ranks.first and not resumes:
        averages.take_over(begin[0].parents[1] / averages.FOLDER, snapshots, training, begin[1])
    log = _log(config, name, arguments, work, mail) if ranks.first else Silent()
    stop = stopper(mail, lease_file(work / "lease", arguments["token"] + 1), preempted)
    hosts = ranks.gather_objects(socket.gethostname())
    validated: dict[str, float] = {}

    def validate(engine: Engine) -> dict[str, Any]:
        found: dict[str, Any] = task.validate(engine)
        validated.update({name: value for name, value in found.items() if isinstance(value, float)})
        return found

    def batches(position: int) -> Iterator[dict[str, Any]]:
        return naming_lost(task.batches(position), work / "lost" / f"{ranks.rank}.txt", say)

    summary = loop.train(
        engine,
        replace(
            task,
            validate=validate,
            batches=batches,
            preview=task.preview and where_finite(task.preview, "preview", say_first),
            measure=task.measure and where_finite(task.measure, "measurement", say_first),
        ),
        training,
        ranks,
        work / "checkpoints",
        log,
        lambda: stop() or getattr(log, "stopped", False),
        token=arguments["token"],
        begin_from=begin,
        snapshots=snapshots,
        progress=lambda progress: write_json(mail / "progress.json", {**asdict(progress), "hosts": hosts}),
        say=say,
        stall_s=config.cluster.collective_timeout / 2,  # told before the other ranks give it up
        flops=lambda: read_flops(mail / FLOPS),
        system=config.tracking.system_metrics,
    )
    if not summary.finished:
        if any(ranks.gather_objects(preempted())) and ranks.first:
            write_json(mail / "outcome.json", {"drained": True})
        return
    if not validated:  # a kill between the last checkpoint and this line
        validate(engine)
    for stem, which, half_life in exports(training):
        weights = engine.export(which, half_life)  # all ranks; whole on rank 0
        if ranks.first:
            save_weights(Path(arguments["path"]) / f"{stem}.safetensors", weights)
        if ranks.first and adapter and which == "ema" and half_life is None:
            adapters.save(Path(arguments["path"]) / adapters.FOLDER, weights, adapter)
    if snapshots:
        averages.save(engine, snapshots)  # the end, whatever came before it
    if ranks.first:
        if snapshots:
            averages.tidy(snapshots, training, engine.averaged)
        write_json(mail / "summary.json", {**asdict(summary), **validated, "world_size": ranks.world})
    ranks.barrier()


def exports(training: Training) -> list[tuple[str, str, int | None]]:
    """(file, which, half-life) of the weights an artifact holds: `ema` is the first half-life, `ema-<samples>` the
    others, `length-<share>` those of relative length."""
    from pipeline.schema.names import length_name

    files: list[tuple[str, str, int | None]] = [("ema", "ema", None), ("live", "live", None)]
    files += [(f"ema-{half_life}", "ema", half_life) for half_life in training.half_lives[1:]]
    return files + [(name, name, None) for name in map(length_name, training.average_lengths)]


def _log(config: Config, name: str, arguments: dict[str, Any], work: Path, mail: Path) -> Any:
    """Rank 0's log: the spool, behind the judge of a sweep that stops hopeless elements."""
    from pipeline.training.prune import Judge

    spool = Spool(work / "spool", arguments["run"], arguments["token"])
    training: Training = getattr(config, name).training
    if not config.sweep or not config.sweep.prune:
        return spool
    return Judge(spool, config.sweep, mail, training.batch_size, training.steps)


class Silent:
    """The log of all ranks but the first."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Nothing: rank 0 logs."""

    def image(self, key: str, image: Any, step: int, cells: Sequence[str] = ()) -> None:
        """Nothing: rank 0 logs."""

    def file(self, path: str | Path, artifact_path: str = "") -> None:
        """Nothing: rank 0 logs."""


def to_device(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    """A batch with its tensors on the device."""
    return {key: value.to(device) if hasattr(value, "to") else value for key, value in batch.items()}


def stopper(mail: Path, successor: Path, preempted: Callable[[], bool]) -> Callable[[], bool]:
    """Whether the driver asked for an end, this node goes away, or another process took the artifact over (`successor`
    is its lease); looks once a second at most."""
    looked, found = 0.0, False

    def stop() -> bool:
        nonlocal looked, found
        if not found and time.monotonic() - looked > STOP_POLL:
            looked = time.monotonic()
            found = preempted() or (mail / "stop").exists() or successor.exists()
        return found

    return stop


def sayer(path: Path) -> Callable[[str], None]:
    """What a rank calls with a line for the person who runs the command."""
    path.parent.mkdir(exist_ok=True)

    def say(line: str) -> None:
        with open(path, "a") as file:
            file.write(f"{line}\n")

    return say


def naming_lost(batches: Iterator[dict[str, Any]], path: Path, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The same batches. Each sample that another one stands for is written to `path`, the first of a shard is told."""
    known: set[str] = set(path.read_text().splitlines()) if path.exists() else set()
    shards: set[str] = set()
    for batch in batches:
        for key, why in batch.get("lost", ()):
            shard = why.partition(", member")[0]
            if key not in known:
                sayer(path)(key)
            if shard not in shards:
                say(f"{why}; another sample stands for it, and for all that {path} names")
            known.add(key)
            shards.add(shard)
        yield batch


def where_finite(
    make: Callable[[Engine], dict[str, Any]], what: str, say: Callable[[str], None]
) -> Callable[[Engine], dict[str, Any]]:
    """The same, but for weights whose samples are not finite: then nothing, and it is said. The guard minds the losses:
    a run ends by them, not by what it shows."""

    def made(engine: Engine) -> dict[str, Any]:
        from pipeline.generate.finite import NotFinite

        try:
            return make(engine)
        except NotFinite as error:
            say(f"no {what}: {error}")
            return {}

    return made
