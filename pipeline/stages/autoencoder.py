"""Stage 2, autoencoder: images -> latents -> images, trained with a reconstruction loss and a KL divergence, and, where
the config says so, SSIM, a perceptual distance and a discriminator.

The network is in `models/autoencoders/`, the loop in `loop.py`, the discriminator's part in `duel.py`. Here: what is
built, the loss, validation, previews, and the yardstick that the result is measured against.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact, Writer
from pipeline.config import Config
from pipeline.files import write_json
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.cluster import Cluster
    from pipeline.engine import Engine
    from pipeline.loop import Task
    from pipeline.ranks import Ranks
    from pipeline.tracking import Spool

INPUTS = ("ingest",)
PREVIEW_IMAGES = 8  # held-out images in a preview, each above its reconstruction: a square of 4 x 4
PCA_BATCH = 50  # images whose patches are in memory at once
PCA_IMAGES = 5_000  # training images behind the patch PCA: its covariance has at most 192 x 192 numbers


def recipe(config: Config) -> dict[str, Any]:
    """What decides on the weights besides the data."""
    from models import registry
    from pipeline.data.balance import balance_recipe
    from pipeline.data.index import skip_recipe
    from pipeline.stages import autoencoder_loss
    from pipeline.stages.trained import training_recipe

    own = {
        "model": registry.resolve("autoencoders", config.autoencoder.model),
        "loss": autoencoder_loss.recipe(config),
        "training": training_recipe(config, "autoencoder"),
    }
    data = result_fields(config.data)
    order = {**{key: data[key] for key in ("augment", "lanes", "on_corrupt")}, **balance_recipe(config.data)}
    order |= skip_recipe(config.data)
    return {**own, "seed": config.run.seed, "order": order}


def run(config: Config, inputs: dict[str, Artifact], writer: Writer, cluster: Cluster, spool: Spool) -> dict[str, Any]:
    """Train by the cluster's ranks, then write how to build the model and compare it with patch PCA."""
    from pipeline.stages import autoencoder_loss, trained

    config, told = autoencoder_loss.with_perceptual(config, inputs["ingest"], writer, cluster, spool)
    summary = trained.train("autoencoder", config, inputs, writer, cluster, spool)
    options = {"model": config.autoencoder.model, "channels": config.data.channels}
    write_json(writer.path / "model.json", options)
    summary["pca_psnr"] = patch_pca(config, inputs["ingest"], load_model(writer.path))
    spool.metrics({"autoencoder/pca_psnr": summary["pca_psnr"]}, summary["step"])
    return summary | told


def headline(summary: dict[str, Any]) -> str:
    if "imported" in summary:
        return f"imported from {summary['imported']}"
    own, linear = summary["val_psnr"], summary["pca_psnr"]
    text = f"PSNR {own:.2f} dB of held-out images, posteriors drawn (patch PCA of the same size: {linear:.2f} dB)"
    if "val_codes_used" in summary:
        text += f"; {summary['val_codes_used']:.1%} of the codes used, perplexity {summary['val_perplexity']:.0f}"
    if "perceptual" in summary:
        text += f"; perceptual distance {summary['val_perceptual']:.4f}, {summary['perceptual']['description']}"
    return text


def load_model(folder: Path, which: str = "ema") -> nn.Module:
    """The trained autoencoder of an artifact, on the CPU, in evaluation mode."""
    from safetensors.torch import load_file

    from models import registry
    from pipeline.files import read_json

    options = read_json(folder / "model.json")
    model: nn.Module = registry.build("autoencoders", options["model"], channels=options["channels"])
    model.load_state_dict(load_file(folder / f"{which}.safetensors"))
    return model.eval()


# ---- on a rank -------------------------------------------------------------------------------------------------------


def images_to_floats(images: Tensor) -> Tensor:
    """uint8 [n, c, H, W] -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def build(config: Config, inputs: dict[str, Artifact], ranks: Ranks) -> tuple[nn.Module, Task]:
    """The network with its first weights, and what the loop needs to know about this stage."""
    import torch

    from models import posterior, registry, similarity
    from pipeline.data import loader
    from pipeline.data.balance import training_order
    from pipeline.data.index import Index
    from pipeline.data.order import seeded
    from pipeline.generate import grid
    from pipeline.loop import Task
    from pipeline.stages import autoencoder_loss
    from pipeline.stages.trained import to_device

    training, loss_config, data = config.autoencoder.training, config.autoencoder.loss, config.data
    torch.manual_seed(seeded(config.run.seed, "autoencoder/weights"))
    model: Any = registry.build("autoencoders", config.autoencoder.model, channels=data.channels)
    if training.activation_checkpointing:
        registry.checkpoint_activations(model, config.autoencoder.model["kind"])
    side = data.size // model.factor
    latent = (model.latent_channels, side, side)
    train, val = (Index.open(inputs["ingest"].path, split, data.cache) for split in ("train", "val"))
    order = training_order(train, data, train.classes, training.batch_size, config.run.seed)

    codebook = getattr(model, "codebook", None)
    held = "kl" if codebook is None else "commitment"  # what holds the latents
    distances, weights = autoencoder_loss.terms(config, ranks.device)
    weights[held] = loss_config.kl_weight if codebook is None else loss_config.commitment
    fight = autoencoder_loss.opponent(config, model, ranks.device)

    def parts(network: nn.Module, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Reconstruction, moments, and by image the terms of the loss; the KL divergence in nats an image element."""
        x = images_to_floats(images)
        reconstruction, moments = network(x, noise)
        reconstruction, moments = reconstruction.float(), moments.float()
        reconstruction = reconstruction.view_as(reconstruction)  # a gradient down to here meets no hook of DeepSpeed's
        terms = {name: distance(x, reconstruction) for name, distance in distances.items()}
        terms[held] = posterior.kl(moments) / x[0].numel() if codebook is None else model.commitment(moments)
        return reconstruction, moments, terms

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        # E_q[|x - D(z)|] + beta KL(q(z|x) || N(0, 1)): Kingma & Welling 2013, eq. 7, as weighted by Rombach et al. 2022
        reconstruction, _, terms = parts(network, batch["images"], batch["noise"])
        means = {name: term.mean() for name, term in terms.items()}
        distance = torch.stack([weights[name] * means[name] for name in distances]).sum()
        fought: dict[str, Tensor] = {}
        if fight is not None and fight.on(int(batch["position"])):
            distance, fought = fight.against(distance, reconstruction)
        return {
            "loss": distance + weights[held] * means[held],
            **{name: mean.detach() for name, mean in means.items()},
            **fought,
            **({} if codebook is None else codebook.state_of_use()),
            **({"skipped": batch["skipped"].float().mean()} if data.on_corrupt == "skip" else {}),
        }

    def batches(position: int) -> Iterator[dict[str, Any]]:
        return loader.image_batches(train, order, data, config.run.seed, ranks.rank, ranks.world, position, latent)

    def validation() -> Iterator[dict[str, Any]]:
        return loader.image_validation(val, training.batch_size, data, config.run.seed, ranks.rank, ranks.world, latent)

    @torch.no_grad()
    def validate(engine: Engine) -> dict[str, float]:
        """Means over the held-out images; PSNR (dB, of images in [0, 1]) is a mean of each image's own, sharpness the
        energy of the reconstructions' gradients over that of the images'."""
        extra = [name for name in distances if name != "reconstruction"]
        names = ("loss", "psnr", held, *extra, "energy", "sharpness", "count")
        total = torch.zeros(len(names), dtype=torch.float64)
        uses = torch.zeros(0 if codebook is None else len(codebook.counts), device=ranks.device)
        with engine.weights("ema"):
            for batch in validation():
                batch = to_device(batch, ranks.device)
                reconstruction, moments, terms = parts(engine.module, batch["images"], batch["noise"])
                target = images_to_floats(batch["images"])
                mse = (reconstruction.clamp(-1, 1) - target).square().mean((1, 2, 3)) / 4  # [-1, 1] -> [0, 1]
                psnr = -10 * mse.clamp(min=1e-10).log10()
                whole = torch.stack([weights[name] * term for name, term in terms.items()]).sum(0)
                energies = (similarity.gradient_energy(images) for images in (target, reconstruction))
                more = (terms[name] for name in extra)
                values = torch.stack([whole, psnr, terms[held], *more, *energies, torch.ones_like(psnr)])  # [names, n]
                total += (values * batch["weight"]).sum(1).double().cpu()
                if codebook is not None:
                    uses += codebook.histogram(moments, batch["weight"])
        sums = dict(zip(names, ranks.sum_floats(total.tolist()), strict=True))
        count, energy = sums.pop("count"), sums.pop("energy")
        result = {f"val_{name}": value / count for name, value in sums.items()}
        result["val_sharpness"] = sums["sharpness"] / max(energy, 1e-12)
        if codebook is not None:
            perplexity, used = codebook.usage(ranks.all_reduce(uses))
            result |= {"val_perplexity": float(perplexity), "val_codes_used": float(used)}
        return result

    shown = next(validation_images(max(val.parts, key=len), data, PREVIEW_IMAGES))  # of one shape

    @torch.no_grad()
    def preview(engine: Engine) -> dict[str, Any]:
        images = shown.to(ranks.device)
        sides = (side // model.factor for side in images.shape[2:])
        noise = torch.zeros(len(images), model.latent_channels, *sides, device=ranks.device)  # the posterior's mean
        with engine.weights("ema"):
            reconstruction, _, _ = parts(engine.module, images, noise)
        back = ((reconstruction.clamp(-1, 1) + 1) * 127.5).round().byte()
        half = len(images) // 2
        rows = torch.cat([images[:half], back[:half], images[half:], back[half:]])  # originals above reconstructions
        return {"reconstructions/val": grid(rows.permute(0, 2, 3, 1).cpu().numpy(), columns=half)}

    return model, Task("autoencoder", loss, batches, validate, preview, fight=fight)


def validation_images(index: Any, data: Any, batch: int) -> Iterator[torch.Tensor]:
    """Images [n, c, H, W] uint8 of an index of one shape in its own order, `batch` at a time, the last ones fewer."""
    import numpy as np
    import torch

    from pipeline.data.index import read_image

    for first in range(0, len(index), batch):
        rows = range(first, min(first + batch, len(index)))
        yield torch.from_numpy(np.stack([read_image(index, i, data) for i in rows]))


# ---- the yardstick ---------------------------------------------------------------------------------------------------


def patch_pca(config: Config, data: Artifact, model: Any) -> float:
    """PSNR (dB) on the held-out images of the best linear code with as many numbers as the latents.

    Each patch of factor x factor pixels becomes its first `latent_channels` principal components (fitted to training
    images, of each bucket the same share): what an autoencoder of the same size has to beat. Same mean over images as
    `val_psnr`.
    """
    import itertools

    import torch

    from pipeline.data.index import Index

    side, keep = model.factor, model.latent_channels

    def patches(images: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.unfold(images.double() / 255, side, stride=side)  # [n, c*side*side, patches]
        return x.transpose(1, 2)

    d = config.data.channels * side * side
    count, total, square = 0, torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    train, val = (Index.open(data.path, split, config.data.cache) for split in ("train", "val"))
    for part in train.parts:
        share = -(-PCA_IMAGES * len(part) // (len(train) * PCA_BATCH))  # batches of this bucket
        for images in itertools.islice(validation_images(part, config.data, PCA_BATCH), share):
            x = patches(images).flatten(0, 1)  # [n * patches, d]
            count, total, square = count + len(x), total + x.sum(0), square + x.T @ x
    mean = total / count
    basis = torch.linalg.eigh(square / count - torch.outer(mean, mean))[1][:, -keep:]  # [d, keep], largest last
    psnr = []
    for part in val.parts:
        for images in validation_images(part, config.data, PCA_BATCH):
            x = patches(images) - mean
            mse = (x - x @ basis @ basis.T).square().mean((1, 2))
            psnr.append(-10 * mse.clamp(min=1e-10).log10())
    return float(torch.cat(psnr).mean())
