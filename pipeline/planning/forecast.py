"""`--dry-run`: what a config means before anything runs: sizes, arithmetic, what is cached, disk that it needs.

Nothing is trained or written; what a figure stands on (order of samples, sources) is in `data/`.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from pipeline.artifacts import Store
from pipeline.config import Config, dump
from pipeline.errors import UserError, many
from pipeline.planning import memory
from pipeline.planning.disk import CHECKPOINT_BYTES, disk, kept
from pipeline.planning.doubts import doubts
from pipeline.planning.fits import check_models
from pipeline.planning.outlook import outlook, told_outlook
from pipeline.schema.training import Training
from pipeline.stages import graph, precision

GIGABYTE = 1e9


def forecast(config: Config) -> str:
    """The dry run's text. Computes on the meta device; reads the source's listing. Raises UserError as a run would."""
    from pipeline.cluster.cluster import Cluster
    from pipeline.data import listing
    from pipeline.data.order import lanes
    from pipeline.schema.data import text

    check_root(config.run.root)
    warnings = [f"warning: {line}" for line in doubts(config)]
    with listing.forgetting(), Cluster(config.cluster) as cluster:
        config = precision.resolve(graph.absolute(config), cluster)
        on_gpu = precision.on_gpu(config, cluster)
        steps = graph.plan(config, Store(config.run.root))
        precision.check_precision(config, cluster, [step.stage for step in steps if not step.artifact])
    channels, sides = check_models(config)
    sizes = parameter_counts(config)
    lines = [
        dump(config),
        f"latents: {' x '.join(map(str, (channels, *sides)))}, {_what(config)}",
    ]
    if config.data.buckets is not None:
        factor = config.data.size // sides[0]
        shown = [f"{text((h, w))} (latents {text((h // factor, w // factor))})" for h, w in config.data.shapes]
        lines.append(f"buckets, height x width: {', '.join(shown)}")
    for name in ("autoencoder", "diffusion"):
        training: Training = getattr(config, name).training
        told = arithmetic(config, training, lanes(training.batch_size))
        lines.append(f"{name}: {sizes[name]:,} parameters; {told}{memory_words(config, name, on_gpu)}")
    if "adapters" in sizes:
        share = sizes["adapters"] / sizes["diffusion"]
        lines.append(f"adapters: {sizes['adapters']:,} parameters ({share:.1%}) are trained, and what is new")
    if "discriminator" in sizes:
        lines.append(f"discriminator: {sizes['discriminator']:,} parameters, from step "
                     f"{config.autoencoder.loss.adversarial.start:,} on")  # fmt: skip
    with listing.forgetting():
        lines.append(f"disk: {disk(config, steps, sizes, channels * math.prod(sides))}")
        lines += [f"ingest: {line}" for line in outlook(config.data, steps[0].artifact)]
        gathered = next((step.artifact for step in steps if step.stage == "conditions"), None)
        lines += [f"conditions: {line}" for line in told_outlook(config, gathered)]
        lines += remote_cache(config, trained=steps[1].artifact is not None)
    for step in steps:
        state = f"cached, {step.artifact.path}" if step.artifact else "would run"
        lines.append(f"{step.stage}: {step.fingerprint} {state}")
    return "\n".join(lines + warnings)


def _what(config: Config) -> str:
    """What latents are made of, in words."""
    if config.data.source.kind == "text":
        from models import registry

        options = registry.resolve("autoencoders", config.autoencoder.model)
        return f"of passages of {options['length']} tokens (channels x vectors)"
    what, sides = "images", "height x width"
    if config.data.clip is not None:
        what, sides = "clips", "frames x height x width"
    elif config.data.sound is not None:
        what, sides = "spectrograms", "mels x frames"
    shape = " x ".join(map(str, (config.data.channels, *config.data.sides)))
    return f"of {what} of {shape} (channels x {sides})"


def check_root(root: str | Path) -> None:
    """UserError if the root could not be made or written. Leaves nothing: a folder is made and removed again, since
    rights alone do not tell (a read-only disk, /proc)."""
    root = Path(root).absolute()
    there = next(path for path in (root, *root.parents) if path.exists())
    try:
        Path(tempfile.mkdtemp(prefix=".ldm-", dir=there)).rmdir()
    except OSError as error:
        raise UserError(
            f"`run.root`: {root} cannot be written ({there}: {error.strerror}); give another folder"
        ) from None


def arithmetic(config: Config, training: Training, default_lanes: int) -> str:
    """The global batch in words."""
    from pipeline.data.order import largest_world, nearest_batch
    from pipeline.training.arithmetic import micro_batches

    world = config.cluster.workers
    lane_count = config.data.lanes or default_lanes
    samples = training.steps * training.batch_size
    text = f"{training.steps:,} steps x {training.batch_size} = {samples:,} samples in {lane_count} lanes"
    if isinstance(world, int):
        ranks = largest_world(lane_count, world)  # as a stage chooses them (stages/trained.py)
        micro, count = micro_batches(training, ranks)
        text += f"; {many(ranks, 'rank')} x {many(count, 'pass', 'passes')} x {micro} samples"
        if ranks < world:
            size, lanes_of_it = nearest_batch(training.batch_size, world)
            text += (
                f" ({world - ranks} of {world} workers stay idle, since ranks must divide the lanes: a batch size of "
                f"{size} in {lanes_of_it} lanes uses all)"
            )
    return text + f"; ZeRO {training.zero_stage}, {training.precision}"


def memory_words(config: Config, name: str, on_gpu: bool) -> str:
    """The memory of a rank of a stage, in words; nothing where its ranks are not known, nor their device's kernels."""
    import torch

    from pipeline.data.order import lanes, largest_world

    training: Training = getattr(config, name).training
    world = config.cluster.workers
    if not isinstance(world, int) or training.lora or (on_gpu and not torch.backends.cuda.is_built()):
        return ""
    ranks = largest_world(config.data.lanes or lanes(training.batch_size), world)
    stays, highest = memory.of_rank(config, name, ranks, "cuda" if on_gpu else "cpu")
    return f"; tensors of a rank {highest / GIGABYTE:.3g} GB at most, {stays / GIGABYTE:.2g} GB between steps"


def discriminator_parameters(config: Config) -> int:
    """Parameters of the discriminator that the config asks for; nothing is allocated."""
    import torch

    from models.adversarial import Discriminator

    options = config.autoencoder.loss.adversarial
    with torch.device("meta"):
        network = Discriminator(config.data.channels, options.width, options.layers)
    return sum(p.numel() for p in network.parameters())


def kept_bytes(training: Training, parameters: int) -> int:
    """Bytes of a training's checkpoints and weights."""
    averages = len(training.half_lives) + len(training.average_lengths)
    each = parameters * (CHECKPOINT_BYTES + 4 * averages)
    return each * (training.keep + 1) + parameters * 4 * (1 + averages)  # one more while it is written; live too


def disk_bytes(
    config: Config, steps: list[graph.Step], sizes: dict[str, int], elements: int, images: int = 0
) -> dict[str, dict[str, float]]:
    """Bytes by stage and use (`checkpoints`, `snapshots`, `latents`), whether the stage has run or not.

    sizes: parameters by network (`parameter_counts`); elements: of a latent;
    images: how many there will be, where ingest has not counted them yet.
    """
    from pipeline.training.snapshots import count

    needs: dict[str, dict[str, float]] = {}
    for name in ("autoencoder", "diffusion"):
        training: Training = getattr(config, name).training
        total = kept_bytes(training, kept(sizes, name))
        if name == "autoencoder":  # the discriminator's, without averages and exports
            total += sizes.get("discriminator", 0) * CHECKPOINT_BYTES * (training.keep + 1)
        stored = kept(sizes, name) * 4 * len(training.average_lengths) * count(training)
        needs[name] = {"checkpoints": float(total), "snapshots": float(stored), "latents": 0.0}
    ingest: Any = steps[0].artifact
    images = sum(ingest.summary["images"].values()) if ingest else images
    latents = images * len(config.latents.views) * elements * 2 * 2
    needs["encode"] = {"checkpoints": 0.0, "snapshots": 0.0, "latents": float(latents)}
    return needs


def parameter_counts(config: Config) -> dict[str, int]:
    """Parameters of `autoencoder`, `diffusion` and, if the config asks for them, `discriminator` and `adapters`; on the
    meta device."""
    from models import lora, registry
    from models.diffusion.denoiser import beside
    from models.patches import size_of

    channels, sides = check_models(config)
    shape: dict[str, Any] = {"channels": channels, "size": size_of(sides)}
    guess = channels if config.diffusion.self_conditioning else 0
    shape |= beside(config.diffusion.backbone, config.diffusion.condition.model_dump()["spatial"], sides, guess)
    sizes = {
        "autoencoder": registry.parameters("autoencoders", config.autoencoder.model, channels=config.data.channels),
        "diffusion": registry.parameters("backbones", config.diffusion.backbone, **shape),
    }
    if config.autoencoder.loss.adversarial.weight:
        sizes["discriminator"] = discriminator_parameters(config)
    if own := config.diffusion.training.lora:
        backbone = registry.outline("backbones", config.diffusion.backbone, channels=channels, size=size_of(sides))
        sizes["adapters"] = lora.parameters(lora.adapted(backbone, own.targets), own.rank)
    return sizes


def remote_cache(config: Config, trained: bool) -> list[str]:
    """The cache a node that remote shards need, in words; none for a local source. UserError if data.cache is smaller.

    `trained`: the autoencoder is there, so that shards are read one after another. Else a node that has all lanes
    reads in as many shards at a time as their windows reach into; with fewer, they would be copied again and again.
    """
    from pipeline.data.order import lanes, shards_at_once
    from pipeline.data.sources import digests_folder_of, tar_digests
    from pipeline.data.tars import is_remote

    source, batch = config.data.source, config.autoencoder.training.batch_size
    if source.kind != "webdataset" or not any(is_remote(pattern) for pattern in (source.path, source.val or "")):
        return []
    tars = [tar for tar in tar_digests(source, digests_folder_of(config.run.root)) if is_remote(tar.location)]
    train = sum(not tar.held_out for tar in tars)
    count = 1 if trained else max(1, shards_at_once(train, batch, config.data.lanes or lanes(batch)))
    if config.data.buckets and not trained:
        count = min(max(1, train), count * len(config.data.shapes))  # each has windows of its own
    if config.data.balance and not trained:
        count = train  # a class's samples are met in any order (balance.py)
    largest = max(tar.bytes for tar in tars)
    text = (
        f"remote shards: {count} of {len(tars)} may be open at once x {largest / GIGABYTE:.3g} GB (the largest) = "
        f"{count * largest / GIGABYTE:.3g} GB of cache a node"
    )
    given = config.data.cache.gigabytes
    if count * largest > given * GIGABYTE:
        raise UserError(f"`data.cache.gigabytes` is {given:g}, but {text}: raise it, or give a smaller batch size")
    return [f"{text}, of {given:g}"]
