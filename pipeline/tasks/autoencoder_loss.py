"""What the autoencoder's loss is made of: the terms that the config turns on, their networks, and what a recipe keeps.

How they are put together is in `autoencoder.py`; the terms themselves are in `models/`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact, Writer
from pipeline.config import Config
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.cluster.cluster import Cluster
    from pipeline.tracking.tracker import Spool
    from pipeline.training.duel import Fight

    Distance = Callable[[Tensor, Tensor], Tensor]


LEAST_SIDE = 16  # pixels of an image that is still compared: SSIM has a window of 11


def recipe(config: Config) -> dict[str, Any]:
    """The keys of the loss that say something: a term that is off leaves no trace, so that older artifacts stay."""
    from pipeline.tasks import perceptual

    loss = config.autoencoder.loss
    kept = result_fields(loss)
    kept["perceptual"] = perceptual.recipe(loss.perceptual) if loss.perceptual.kind != "none" else None
    off = {
        "commitment": config.autoencoder.model.get("kind") != "vq",
        "ssim": not loss.ssim,
        "equivariance": not loss.equivariance,
        "perceptual": loss.perceptual.kind == "none",
        "adversarial": not loss.adversarial.weight,
    }
    return {key: value for key, value in kept.items() if not off.get(key)}


def with_perceptual(
    config: Config, data: Artifact, writer: Writer, cluster: Cluster, spool: Spool
) -> tuple[Config, dict[str, Any]]:
    """The config with the file of the perceptual distance's classifier, trained once, and what the distance is.

    What it is goes to the log, the tracker's tags and the summary ({} where there is none).
    """
    from pipeline.tasks import perceptual

    options = config.autoencoder.loss.perceptual
    if options.kind == "none":
        return config, {}
    if options.kind == "classifier" and options.path is None:
        path = writer.path / "perceptual.safetensors"  # one file for all ranks and restarts
        if not path.exists():
            threads = config.cluster.least_threads
            values = config.model_dump(mode="json", by_alias=True)
            job = {"config": values, "data": str(data.path), "path": str(path), "threads": threads}
            said = next(iter(cluster.map(perceptual.train_classifier, [job], threads=threads, gpus=1)))
            print(f"autoencoder: {said}", flush=True)
        values = config.model_dump(mode="json", by_alias=True)
        values["autoencoder"]["loss"]["perceptual"]["path"] = str(path)
        config = Config.model_validate(values)
    _, told = perceptual.load(config.autoencoder.loss.perceptual, min(config.data.shape), config.data.channels)
    print(f"autoencoder: perceptual distance: {told['description']}", flush=True)
    spool.tags({"ldm.perceptual": told["description"]})
    return config, {"perceptual": told}


def terms(config: Config, device: torch.device) -> tuple[dict[str, Distance], dict[str, float]]:
    """The terms of the distance of images and reconstructions, both [n, c, H, W] in [-1, 1] -> [n], and their weights.
    The first is `reconstruction`."""
    from models import similarity
    from pipeline.tasks import perceptual

    options, size = config.autoencoder.loss, min(config.data.shape)
    if options.reconstruction == "l1":
        found: dict[str, Any] = {"reconstruction": lambda x, y: (y - x).abs().mean((1, 2, 3))}
    else:
        found = {"reconstruction": lambda x, y: (y - x).square().mean((1, 2, 3))}
    weights = {"reconstruction": 1.0}
    if options.ssim:
        found["ssim"], weights["ssim"] = (lambda x, y: 1 - similarity.ssim(x, y)), options.ssim
    if options.perceptual.kind != "none":
        distance, _ = perceptual.load(options.perceptual, size, config.data.channels)
        found["perceptual"], weights["perceptual"] = distance.to(device), options.perceptual.weight
    return found, weights


def turn(config: Config, position: int, side: int, factor: int) -> tuple[int, int] | None:
    """Side and quarter turns that the latents, side x side, of the step at `position` are brought to before they are
    decoded; None where they are not. All ranks find the same."""
    from pipeline.data.order import Draw, draws

    share = config.autoencoder.loss.equivariance
    if not share:
        return None
    spec = [Draw("on", "uniform"), Draw("side", "uniform"), Draw("quarters", "integer", high=4)]
    drawn = draws(config.run.seed, "autoencoder/turn", position, spec)
    if drawn["on"] >= share:
        return None
    least = min(side, max(-(-side // 4), -(-LEAST_SIDE // factor)))
    return least + int(drawn["side"] * (side - least + 1)), int(drawn["quarters"])


def opponent(config: Config, model: Any, device: torch.device) -> Fight | None:
    """The discriminator of `model`, with its first weights, if the config asks for one."""
    import torch

    from models.adversarial import Discriminator
    from pipeline.data.order import seeded
    from pipeline.training.duel import Fight

    options = config.autoencoder.loss.adversarial
    if not options.weight:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(config.run.seed, "autoencoder/discriminator"))
        network = Discriminator(config.data.channels, options.width, options.layers)
    fight = Fight(network, options, config.autoencoder.training, device)
    fight.watch(model.last_layer)
    return fight
