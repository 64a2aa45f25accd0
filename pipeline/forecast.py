"""`--dry-run`: what a config means before anything runs: sizes, arithmetic, what is cached, disk that it needs."""

from __future__ import annotations

from typing import Any

from pipeline import graph
from pipeline.artifacts import Store
from pipeline.config import Config, Training, check_models, dump

CHECKPOINT_BYTES = 12  # a parameter: master and two moments in fp32; 4 more an average (checkpoint.py)
GIGABYTE = 1e9


def forecast(config: Config) -> str:
    """The dry run's text. Computes on the meta device; reads the source's listing. Raises UserError as a run would."""
    from models import registry
    from pipeline.cluster import Cluster
    from pipeline.data.order import lanes

    with Cluster(config.cluster) as cluster:
        config = graph.resolve(graph.absolute(config), cluster)
    steps = graph.plan(config, Store(config.run.root))
    channels, side = check_models(config)
    sizes = {
        "autoencoder": registry.parameters("autoencoders", config.autoencoder.model, channels=config.data.channels),
        "diffusion": registry.parameters("backbones", config.diffusion.backbone, channels=channels, size=side),
    }
    lines = [
        dump(config),
        f"latents: {channels} x {side} x {side} (images: {config.data.channels} x {config.data.size}^2)",
    ]
    for name, parameters in sizes.items():
        training: Training = getattr(config, name).training
        lines.append(f"{name}: {parameters:,} parameters; {arithmetic(config, training, lanes(training.batch_size))}")
    lines.append(f"disk: {disk(config, steps, sizes, channels * side * side)}")
    for step in steps:
        state = f"cached, {step.artifact.path}" if step.artifact else "would run"
        lines.append(f"{step.stage}: {step.fingerprint} {state}")
    return "\n".join(lines)


def arithmetic(config: Config, training: Training, default_lanes: int) -> str:
    """The global batch in words."""
    world = config.cluster.workers
    lane_count = config.data.lanes or default_lanes
    samples = training.steps * training.batch_size
    text = f"{training.steps:,} steps x {training.batch_size} = {samples:,} samples in {lane_count} lanes"
    if isinstance(world, int):
        share = training.batch_size // world
        micro = min(training.micro_batch or share, share)
        text += f"; {world} ranks x {micro} x {share // micro} micro-batches"
    return text + f"; ZeRO {training.zero_stage}, {training.precision}"


def disk(config: Config, steps: list[graph.Step], sizes: dict[str, int], elements: int) -> str:
    """Bytes that checkpoints, weights and latents take, in words. Latents are counted where the data is known."""
    total = 0.0
    for name, parameters in sizes.items():
        training: Training = getattr(config, name).training
        each = parameters * (CHECKPOINT_BYTES + 4 * len(training.half_lives))
        total += each * (training.keep + 1) + parameters * 8  # one more while it is written; live and ema
    text = f"{total / GIGABYTE:.2f} GB for checkpoints and weights"
    ingest: Any = steps[0].artifact
    if ingest:
        images = sum(ingest.summary["images"].values())
        text += f", {images * len(config.latents.views) * elements * 2 * 2 / GIGABYTE:.2f} GB for latents"
    return text + f"; remote shards: at most {config.data.cache.gigabytes:g} GB of cache a node"
