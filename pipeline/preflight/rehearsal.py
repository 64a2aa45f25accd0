"""A real step of each trained stage before a run: the config's networks, loss, precision, ZeRO stage and micro-batch.

The ranks are those of training, placed in the same way. A stage whose inputs are not there yet gets synthetic ones of
the right shapes in a folder of their own. What the figures mean is judged in `verdicts.py`.
"""

from __future__ import annotations

import gc
import importlib
import math
import signal
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact, Store
from pipeline.config import Config
from pipeline.files import digest, sha256_file, write_json
from pipeline.planning.fits import check_models
from pipeline.preflight.synthetic_clips import synthetic_clips

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster
    from pipeline.stages.graph import Step
    from pipeline.training.ranks import Ranks

STAGES = ("autoencoder", "diffusion")
SIZES = (4 * 2**10, 2**20, 16 * 2**20, 64 * 2**20)  # bytes of an all-reduce: from latency to DeepSpeed's buckets
REPEATS = 3  # of each all-reduce, after one that is not counted
SLOW_REDUCE = 2.0  # seconds of an all-reduce after which larger ones are left out
STEPS = 3  # timed steps after the first, which warms up
STAGE_SECONDS = 25.0  # after so long a stage takes no further step: both have to fit into two minutes
LEAST_IMAGES = 64  # synthetic images: what the smallest batches need


def rehearse(config: Config, steps: list[Step], cluster: Cluster, folder: Path) -> dict[str, Any]:
    """Steps of both trained stages (without those that are finished) on the cluster's ranks, all-reduces between them.

    folder: on the shared root. Gives what `rank` measured, and `notes` on what was not as it will be. Raises UserError
    for what a run would refuse (out of memory, say), Stopped at once when asked to end, or what Ray Train raised.
    """
    from pipeline.cluster.stopping import Stopped
    from pipeline.files import read_json

    stages = [name for name in STAGES if name not in finished(steps)]
    world = max(ranks_of(config, name, cluster.workers()) for name in stages)
    rehearsed, notes = as_rehearsed(config, world)
    if config.data.source.kind == "text":  # whose tokenizer is kept under the root
        rehearsed = rehearsed.model_copy(update={"run": config.run.model_copy(update={"root": str(folder)})})
    inputs, made = make_inputs(rehearsed, {} if config.data.buckets else finished(steps), folder, stages)
    arguments = {
        "config": rehearsed.model_dump(mode="json", by_alias=True),
        "stages": stages,
        "inputs": {name: str(artifact.path) for name, artifact in inputs.items()},
        "result": str(folder / "rehearsal.json"),
    }
    work = folder / "work"
    work.mkdir()

    def watch() -> None:
        if (work / "stop").exists():  # nothing is to be saved: no rank is waited for
            raise Stopped(again=(work / "stop").read_text() == signal.SIGUSR1.name)

    cluster.train(rank, arguments, work, lambda: world, watch)
    return {**read_json(folder / "rehearsal.json"), "notes": notes + made}


def finished(steps: list[Step]) -> dict[str, Artifact]:
    """The finished artifacts by stage."""
    return {step.stage: step.artifact for step in steps if step.artifact}


def as_rehearsed(config: Config, world: int) -> tuple[Config, list[str]]:
    """The config whose global batch is one micro-batch a rank, and what else was changed to be quick, in words."""
    from pipeline.training.arithmetic import micro_batches

    values, notes = config.model_dump(by_alias=True), []
    for name in STAGES:
        training = getattr(config, name).training
        micro, _ = micro_batches(training, ranks_of(config, name, world))
        changed = {"batch_size": micro * world, "micro_batch": micro, "skip": (), "compile": False}
        values[name]["training"] |= {**changed, "init_from": None, "lora": None, "snapshot_every": None}
        if training.lora:
            notes.append(f"{name}: without `lora`, as if all its weights were trained: an adapter needs less memory")
        if training.compile:
            notes.append(f"{name}: torch.compile was left out, it takes minutes to start")
    values["data"] |= {"lanes": world, "balance": None, "buckets": None}
    if config.data.buckets:
        notes.append("buckets: the images were squares")
    values["diffusion"]["fd"]["every"] = 0
    if student := config.diffusion.distil:  # whose teacher is not loaded
        values["diffusion"]["distil"] = None
        values["evaluate"] |= {"sampler": "dpmpp_2m", "grid": "auto"}
        more = f"step is of {student.steps} times as many samples, and walks as its teacher: longer, with more memory"
        notes.append(f"diffusion: a denoiser was trained in place of the student, whose {more}")
    perceptual = values["autoencoder"]["loss"]["perceptual"]
    if perceptual["kind"] == "classifier" and perceptual["path"] is None:
        perceptual["kind"] = "random"
        notes.append("autoencoder: an untrained network stood for the classifier of the perceptual loss")
    return Config.model_validate(values), notes


def ranks_of(config: Config, name: str, workers: int) -> int:
    """Ranks that a stage's training will have of so many workers."""
    from pipeline.data.order import lanes, largest_world

    return largest_world(config.data.lanes or lanes(getattr(config, name).training.batch_size), workers)


# ---- inputs ----------------------------------------------------------------------------------------------------------


def make_inputs(
    config: Config, inputs: dict[str, Artifact], folder: Path, stages: list[str]
) -> tuple[dict[str, Artifact], list[str]]:
    """The inputs of the trained stages: of the finished artifacts `inputs`, and synthetic ones under `folder`."""
    inputs, notes, store = dict(inputs), [], Store(folder)
    if "ingest" not in inputs:
        kind, what = config.data.source.kind, "are ingested yet: computed ones of the right shape"
        if kind == "clips":
            inputs["ingest"], what = synthetic_clips(config, store, 2 * _images(config)), f"clips {what}"
        elif kind == "text":
            inputs["ingest"], what = synthetic_text(config, store), "text is ingested yet: random words"
        else:
            inputs["ingest"], what = synthetic_images(config, store), f"images {what}"
        notes.append(f"no {what} were used")
    if "diffusion" in stages and "autoencoder" not in inputs:
        inputs["autoencoder"] = fresh_autoencoder(config, store, inputs["ingest"])
    if "diffusion" in stages and "encode" not in inputs:
        inputs["encode"] = synthetic_latents(config, store, len(inputs["ingest"].summary["classes"]))
        notes.append("no latents are there yet: random ones of the right shape were used")
    names = ["ingest", "autoencoder", "encode"]
    if "diffusion" in stages and config.diffusion.condition.columns:
        names.append("conditions")
        if "conditions" not in inputs or "images" not in inputs["encode"].summary:  # numbered as the latents are
            inputs["conditions"] = synthetic_conditions(config, store, inputs["encode"])
    return {name: inputs[name] for name in names if name in inputs}, notes


def _images(config: Config) -> int:
    """Synthetic samples of the training split: some batches' worth of lanes, not many, since ingest takes its time."""
    return max(LEAST_IMAGES, 2 * int(config.data.lanes or 1))


def synthetic_images(config: Config, store: Store) -> Artifact:
    """An artifact of computed images in the config's size, written by ingest itself."""
    from pipeline.cluster.inline import Inline
    from pipeline.schema.data import ShapesSource, Split
    from pipeline.stages import ingest

    side = min(1024, max(8, config.data.size))
    source = ShapesSource(kind="shapes", count=2 * _images(config), sizes=((side, side),))
    changed = {"source": source, "split": Split(val_fraction=0.3), "filters": (), "max_quarantine": 1.0, "limit": None}
    data = config.data.model_copy(update=changed)
    of_shapes = config.model_copy(update={"data": data, "run": config.run.model_copy(update={"root": str(store.root)})})
    with store.write("ingest", "rehearsal", {}, {}) as writer:
        return writer.finish(ingest.run(of_shapes, {}, writer, Inline(), None))


def synthetic_text(config: Config, store: Store) -> Artifact:
    """An artifact of random words, in passages that are longer than the autoencoder's, written by ingest itself."""
    import json

    import numpy as np

    from pipeline.cluster.inline import Inline
    from pipeline.schema.data import Split
    from pipeline.schema.text import TextSource
    from pipeline.stages import ingest

    letters, generator = np.array(list("abcdefghijklmnopqrstuvwxyz     ")), np.random.default_rng(0)
    length = text_length(config) * 8  # bytes: more than a token has, mostly
    store.root.mkdir(parents=True, exist_ok=True)
    file = store.root / "rehearsal.jsonl"
    with open(file, "w") as out:
        for i in range(2 * _images(config)):
            text = f"{i} {''.join(generator.choice(letters, length))}"
            out.write(json.dumps({"text": text, "label": "ab"[i % 2]}) + "\n")
    most = max(16, min(length, 65536))
    source = TextSource(kind="text", path=str(file), label="label", passage=most, longest=10 * length + most)
    changed = {"source": source, "split": Split(val_fraction=0.3), "max_quarantine": 1.0, "limit": None}
    of_text = config.model_copy(update={"data": config.data.model_copy(update=changed)})
    with store.write("ingest", "rehearsal", {}, {}) as writer:
        return writer.finish(ingest.run(of_text, {}, writer, Inline(), None))


def text_length(config: Config) -> int:
    """Tokens of a passage of the config's text autoencoder."""
    from models import registry

    return int(registry.resolve("autoencoders", config.autoencoder.model)["length"])


def fresh_autoencoder(config: Config, store: Store, ingest: Artifact) -> Artifact:
    """An artifact of the config's autoencoder as it is before training, with a tokenizer where it is of text."""
    from models import registry
    from pipeline.data import tokens
    from pipeline.networks import save_weights

    model: Any = registry.build("autoencoders", config.autoencoder.model, channels=config.data.channels)
    with store.write("autoencoder", "rehearsal", {"model": config.autoencoder.model}, {}) as writer:
        save_weights(writer.path / "ema.safetensors", model.state_dict())
        if config.data.source.kind == "text":
            options = registry.resolve("autoencoders", config.autoencoder.model)
            tokens.keep(tokens.trained(options, ingest, store.root), writer.path)
        options = {"model": config.autoencoder.model, "channels": config.data.channels}
        write_json(writer.path / "model.json", options)
        return writer.finish({})


def synthetic_latents(config: Config, store: Store, classes: int) -> Artifact:
    """An artifact of random latents in the config's shape, with the views it asks for."""
    import numpy as np
    import torch

    from pipeline.data import latent_shards
    from pipeline.data.latents import LatentSpace

    channels, sides = check_models(config)
    generator = np.random.default_rng(0)
    shards = []
    pool = store.root / "latents"
    pool.mkdir(parents=True, exist_ok=True)
    for shard, (split, count) in enumerate((("train", _images(config)), ("val", LEAST_IMAGES))):
        shape = (count, len(config.latents.views), 2 * channels, *sides)
        moments = generator.standard_normal(shape, np.float32).astype(np.float16)
        labels = generator.integers(0, max(1, classes), count) if classes else np.full(count, -1)
        path = pool / f"{split}.tar"
        latent_shards.write(path, moments, labels.astype(np.int64), [f"{i:08d}" for i in range(count)])
        entry = {"split": split, "shard": shard, "count": count, "file": path.name}
        shards.append({**entry, "bytes": path.stat().st_size, "sha256": sha256_file(path)})
    with store.write("encode", digest("rehearsal")[:16], {}, {}) as writer:
        write_json(writer.path / "shards.json", {"pool": "latents", "shards": shards})
        LatentSpace(torch.zeros(channels), torch.ones(channels)).save(writer.path / "latents.json")
        return writer.finish({"shape": [channels, *sides]})


def synthetic_conditions(config: Config, store: Store, latents: Artifact) -> Artifact:
    """An artifact that tells each latent the same, captions as long as they may be."""
    import numpy as np

    from pipeline.data import caption_shards, map_shards
    from pipeline.data.condition_shards import KEY, write
    from pipeline.data.text_encoders import Embedding
    from pipeline.stages.conditions import asked, options_of

    condition, caption = asked(config), config.diffusion.condition.caption
    columns: dict[str, Any] = {KEY: "0"}
    for name, own in condition["attributes"].items():
        one = own["range"][0] if own["kind"] == "continuous" else (own["values"] or ["a"])[0]
        own["column"] = name  # a column of its own, where several are told of one
        columns[name] = [one] if own["kind"] == "multi_label" else one
    if caption:
        columns["caption"] = "x" * (caption.tokens - 1)
    pool = store.root / "conditions"
    pool.mkdir(parents=True, exist_ok=True)
    counts = latents.summary.get("images", {"train": _images(config), "val": LEAST_IMAGES})
    records = {split: write(pool, condition, [columns] * count) for split, count in counts.items()}
    shards = [{"split": split, "shard": 0, **record} for split, record in records.items()]
    empty = None
    if caption and (encoder := condition["caption"].get("encoder")):  # which is not run: zeros stand for what it gives
        zeros = np.zeros((caption.tokens, encoder["width"]), np.float16)
        given, empty = Embedding(zeros, zeros[0]), caption_shards.packed(Embedding(zeros[:2], zeros[0]))
        for split, record in records.items():
            texts = [[columns["caption"]]] * counts[split]
            made = caption_shards.write(pool, encoder, caption.tokens, texts, lambda texts: ([given] * len(texts), 0))
            record["embedded"] = made
            shards.append({"split": split, "shard": 0, "embeds": True, **made})
    spatial, grey = condition["spatial"], map_shards.Picture("grey", "pgm", lambda: b"P5 1 1 255 \x80")
    for split, count in counts.items() if spatial else ():
        told = map_shards.write(pool, spatial, {name: [grey] * count for name in spatial}, config.data.max_pixels)
        shards.append({"split": split, "shard": 0, "maps": True, **told})
    more = {"spatial": spatial} if spatial else {}
    with store.write("conditions", digest("rehearsal")[:16], {}, {}) as writer:
        write_json(writer.path / "shards.json", {"pool": "conditions", "shards": shards})
        return writer.finish({**options_of(condition, config, list(records.values()), empty), **more})


# ---- on a rank -------------------------------------------------------------------------------------------------------


def rank(arguments: dict[str, Any]) -> None:
    """One rank's part. Rank 0 writes `result`: world, device, hosts of the ranks, `collective`, `stages` by name."""
    import socket

    import torch

    from pipeline.cluster.on_rank import device
    from pipeline.training.ranks import open_ranks

    torch.set_num_threads(arguments["threads"])
    config, ranks = Config.model_validate(arguments["config"]), open_ranks(device())
    inputs = {name: Artifact.load(path) for name, path in arguments["inputs"].items()}
    found = {
        "world": ranks.world,
        "device": ranks.device.type,
        "hosts": ranks.gather_objects(socket.gethostname()),
        "collective": all_reduce_times(ranks),
        "stages": {name: stage_step(name, config, inputs, ranks) for name in arguments["stages"]},
    }
    if ranks.first:
        write_json(arguments["result"], found)
    ranks.barrier()


def all_reduce_times(ranks: Ranks, sizes: tuple[int, ...] = SIZES) -> list[dict[str, float]]:
    """Seconds (median) of an all-reduce of so many `bytes` of fp32, and `bandwidth` in bytes/s; empty for one rank.

    Bandwidth is that of the bus, 2 (n - 1) / n x bytes / seconds (as nccl-tests count): what each rank's link carries.
    """
    import torch

    rows: list[dict[str, float]] = []
    if ranks.world == 1:
        return rows
    for size in sizes:
        values = torch.zeros(size // 4, device=ranks.device)
        times = []
        for _ in range(1 + REPEATS):
            ranks.barrier()
            _wait_for_device(ranks)
            begun = time.perf_counter()
            ranks.all_reduce(values)
            _wait_for_device(ranks)
            times.append(time.perf_counter() - begun)
        slowest = torch.tensor(times[1:], device=ranks.device)
        seconds = float(ranks.all_reduce(slowest, "max").median())  # equal on all ranks: they leave together
        moved = 2 * (ranks.world - 1) / ranks.world * size
        rows.append({"bytes": float(size), "seconds": seconds, "bandwidth": moved / max(seconds, 1e-9)})
        if seconds > SLOW_REDUCE:
            break
    return rows


def _wait_for_device(ranks: Ranks) -> None:
    import torch

    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)


def stage_step(name: str, config: Config, inputs: dict[str, Artifact], ranks: Ranks) -> dict[str, float | None]:
    """Steps of one stage with one micro-batch a rank.

    Gives `images` a step over all ranks, seconds of a `step` (a later one, the first where there was no time for
    another), of reading its batch on a rank (`load`), bytes of `memory` of the rank that used the most, `parameters`,
    the `loss` (None: not finite).
    """
    import torch

    training = getattr(config, name).training
    model, task = importlib.import_module(f"pipeline.tasks.{name}").build(config, inputs, ranks)
    engine = task.engine(model, training, ranks)
    start = config.autoencoder.loss.adversarial.start if name == "autoencoder" else 0  # where a discriminator is on
    position, begun = start * training.batch_size, time.perf_counter()
    batches = task.batches(position)
    steps, loads, losses = [], [], []
    for _ in range(1 + STEPS):
        loads.append(-time.perf_counter())
        batch = next(batches)
        loads[-1] += time.perf_counter()
        ranks.barrier()
        steps.append(-time.perf_counter())
        losses.append(engine.step(batch, position).loss)  # its loss comes to the host: the step is over
        _wait_for_device(ranks)
        steps[-1] += time.perf_counter()
        position += training.batch_size
        spent = torch.tensor(time.perf_counter() - begun, device=ranks.device)
        if float(ranks.all_reduce(spent, "max")) > STAGE_SECONDS:
            break
    getattr(batches, "close", lambda: None)()
    mine = [max(median(times[1:] or times), 1e-9) for times in (steps, loads)] + [_peak_memory(ranks)]
    step, load, memory = ranks.all_reduce(torch.tensor(mine, dtype=torch.float64, device=ranks.device), "max").tolist()
    found: dict[str, float | None] = {
        "images": float(training.batch_size),
        "step": step,
        "load": load,
        "memory": memory,
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "loss": losses[-1] if math.isfinite(losses[-1]) else None,
    }
    del engine, model, task, batches
    gc.collect()
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _peak_memory(ranks: Ranks) -> float:
    """Bytes of the GPU, or of the process on a CPU, at the highest."""
    import resource

    import torch

    if ranks.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(ranks.device))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
