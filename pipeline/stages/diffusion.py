"""Stage 4, diffusion: a network that predicts noise (or its like) in the latent space, trained on cached latents.

The network is in `models/backbones/`, the loss in `models/diffusion/objectives.py`, the loop in `loop.py`. Here: what
is built, validation, previews, and the yardstick that the validation loss is measured against.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact, Writer, check_inputs
from pipeline.config import Config
from pipeline.fd_curve import Curve, prepare
from pipeline.files import write_json
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.cluster import Cluster
    from pipeline.engine import Engine
    from pipeline.loop import Task
    from pipeline.ranks import Ranks
    from pipeline.tracking import Spool

INPUTS = ("ingest", "autoencoder", "encode")
PREVIEW_IMAGES = 16
PREVIEW_STEPS = 20
GAUSSIAN_LIMIT = 4096  # elements of a latent above which its full covariance (and the yardstick) is left out


def recipe(config: Config) -> dict[str, Any]:
    """What decides on the weights besides the latents."""
    from models import registry
    from pipeline.data.balance import balance_recipe
    from pipeline.stages.trained import training_recipe

    section = result_fields(config.diffusion)
    section["training"] = training_recipe(config, "diffusion")
    section["backbone"] = registry.resolve("backbones", config.diffusion.backbone)
    return {**section, "seed": config.run.seed, "lanes": config.data.lanes, **balance_recipe(config.data)}


def run(config: Config, inputs: dict[str, Artifact], writer: Writer, cluster: Cluster, spool: Spool) -> dict[str, Any]:
    """Refuse latents of another autoencoder, train by the cluster's ranks, compare with the best Gaussian denoiser."""
    from pipeline.stages import trained

    check_inputs(inputs["encode"], {"autoencoder": inputs["autoencoder"], "ingest": inputs["ingest"]})
    if config.diffusion.fd.every:
        threads = config.cluster.threads if config.cluster.threads != "auto" else 1
        about = {"config": config.model_dump(mode="json", by_alias=True), "ingest": str(inputs["ingest"].path)}
        described = next(iter(cluster.map(prepare, [{**about, "threads": threads}], threads=threads, gpus=1)))
        spool.tags({"ldm.fd_curve": described})
    summary = trained.train("diffusion", config, inputs, writer, cluster, spool)
    write_json(writer.path / "model.json", options(config, inputs))
    gaussian = gaussian_loss(config, inputs["encode"])
    if gaussian is not None:
        summary["gaussian_loss"] = gaussian
        spool.metrics({"diffusion/gaussian_loss": gaussian}, summary["step"])
    return summary


def headline(summary: dict[str, Any]) -> str:
    yardstick = f" (best Gaussian denoiser: {summary['gaussian_loss']:.4f})" if "gaussian_loss" in summary else ""
    return f"validation loss {summary['val_loss']:.4f}{yardstick}"


def options(config: Config, inputs: dict[str, Artifact]) -> dict[str, Any]:
    """All that is needed to build the network again and to sample with it, as plain values."""
    from pipeline.data.buckets import usual

    summary = inputs["encode"].summary
    shape, buckets = summary["shape"], {}
    if "buckets" in summary:  # [height, width] of the latents, those that training meets; the usual one first
        rows = [row for row in summary["buckets"] if row["train"]]
        first = usual([row["shape"] for row in rows], [row["train"] for row in rows], shape[1])
        buckets = {"buckets": [rows[first]["shape"], *(row["shape"] for i, row in enumerate(rows) if i != first)]}
    return {
        "latent": {"channels": shape[0], "size": shape[1], **buckets},
        "backbone": config.diffusion.backbone,
        "condition": config.diffusion.condition.model_dump(mode="json"),
        "classes": inputs["ingest"].summary["classes"],
        "path": config.diffusion.path.model_dump(mode="json"),
        "prediction": config.diffusion.prediction,
    }


# ---- on a rank -------------------------------------------------------------------------------------------------------


def build(config: Config, inputs: dict[str, Artifact], ranks: Ranks) -> tuple[nn.Module, Task]:
    """The network with its first weights, and what the loop needs to know about this stage."""
    import torch

    from models.diffusion import objectives
    from models.diffusion.process import make_path
    from pipeline.data import loader
    from pipeline.data.balance import training_order
    from pipeline.data.order import seeded
    from pipeline.generate import build_network, generator, grid
    from pipeline.latents import LatentSpace
    from pipeline.loop import Task
    from pipeline.stages.autoencoder import load_model
    from pipeline.stages.encode import open_latents
    from pipeline.stages.trained import to_device

    section, training, seed = config.diffusion, config.diffusion.training, config.run.seed
    what = options(config, inputs)
    torch.manual_seed(seeded(seed, "diffusion/weights"))
    network = build_network(what, activation_checkpointing=training.activation_checkpointing)
    path = make_path(section.path.kind, section.path.schedule)
    space = LatentSpace.load(inputs["encode"].path / "latents.json")
    train, val = (open_latents(inputs["encode"], split) for split in ("train", "val"))
    null = len(what["classes"])
    order = training_order(train, config.data, what["classes"], training.batch_size, seed)

    times = objectives.Times(section.times.kind, section.times.mean, section.times.std)

    def per_sample(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The weighted squared error of the prediction, a mean over elements: [n]."""
        x0 = space.draw(batch["moments"], batch["posterior"])  # [n, C, h, w]
        condition = {"class": batch["label"]}
        t = times(batch["u"], path)
        return objectives.loss(network, x0, batch["noise"], t, condition, path, section.prediction, section.weighting)

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": per_sample(network, batch).mean()}

    def batches(position: int) -> Iterator[dict[str, Any]]:
        return loader.latent_batches(
            train, order, config.data, seed, ranks.rank, ranks.world, position, section.condition.drop, null
        )

    def validation() -> Iterator[dict[str, Any]]:
        return loader.latent_validation(val, training.batch_size, config.data, seed, ranks.rank, ranks.world, null)

    @torch.no_grad()
    def validate(engine: Engine) -> dict[str, float]:
        """Mean loss over the held-out latents, times spread evenly, every sample once, conditions never dropped."""
        total = torch.zeros(2, dtype=torch.float64)
        with engine.weights("ema"):
            for batch in validation():
                batch = to_device(batch, ranks.device)
                weight = batch["weight"]
                values = per_sample(engine.module, batch)
                total += torch.stack([(values * weight).sum(), weight.sum()]).double().cpu()
        value, count = ranks.sum_floats(total.tolist())
        return {"val_loss": value / count}

    decoder = load_model(inputs["autoencoder"].path).to(ranks.device)

    def preview(engine: Engine) -> dict[str, Any]:
        """Samples of the averaged weights from fixed noise, classes in turn; every rank computes the same."""
        classes = [i % null for i in range(PREVIEW_IMAGES)] if null and section.condition.kind == "class" else None
        with engine.weights("ema"):
            sampler = generator(what, decoder, engine.module, space, ranks.device)
            images = sampler.sample(
                classes, n=PREVIEW_IMAGES, seed=seed, steps=PREVIEW_STEPS, batch_size=PREVIEW_IMAGES
            )
        return {"samples/ema": grid(images, columns=4)}

    if not section.fd.every:
        return network, Task("diffusion", loss, batches, validate, preview)
    curve = Curve(config, inputs["ingest"])
    request = curve.request()

    def measure(engine: Engine) -> dict[str, float]:
        """A point of the curve of Fréchet distances; every rank samples the same, rank 0 looks at it."""
        with engine.weights("ema"):
            images = generator(what, decoder, engine.module, space, ranks.device).sample(**request)
        return curve.point(images) if ranks.first else {}

    return network, Task("diffusion", loss, batches, validate, preview, measure, section.fd.every)


# ---- the yardstick ---------------------------------------------------------------------------------------------------


def gaussian_loss(config: Config, latents: Artifact) -> float | None:
    """Loss of the best denoiser of a Gaussian with the latents' mean and full covariance, in closed form.

    A network that has learned more than second moments is below it. None where the latents are too large, and where
    they are of several shapes, which have no covariance in common.
    """
    import numpy as np
    import torch

    from models.diffusion import gaussian
    from models.diffusion.objectives import Times
    from models.diffusion.process import make_path
    from pipeline.data.latent_shards import LatentIndex
    from pipeline.latents import LatentSpace
    from pipeline.stages.encode import shard_paths

    channels, size, _ = latents.summary["shape"]
    d = channels * size * size
    if d > GAUSSIAN_LIMIT or "buckets" in latents.summary:
        return None
    space = LatentSpace.load(latents.path / "latents.json")
    index = LatentIndex.open(shard_paths(latents, "train"))
    total, square, variance, count = np.zeros(d), np.zeros((d, d)), np.zeros(d), 0
    scale = space.std.double().numpy().repeat(size * size)  # one number an element
    for first in range(0, len(index), 4096):
        moments = index.moments(np.arange(first, min(first + 4096, len(index))), 0).astype(np.float64)  # [n, 2C, h, w]
        mean, logvar = (part.reshape(len(moments), d) for part in np.split(moments, 2, axis=1))
        x = space.normalise(torch.from_numpy(mean).view(-1, channels, size, size)).flatten(1).numpy()
        total += x.sum(0)
        square += x.T @ x
        variance += np.exp(logvar).sum(0) / scale**2
        count += len(x)
    centre = total / count
    covariance = square / count - np.outer(centre, centre) + np.diag(variance / count)
    section = config.diffusion
    return gaussian.gaussian_loss(
        torch.from_numpy(np.linalg.eigvalsh(covariance)),
        make_path(section.path.kind, section.path.schedule),
        section.prediction,
        Times(section.times.kind, section.times.mean, section.times.std),
        section.weighting,
    )
