"""What the autoencoder learns: the network, its loss, validation and previews, on a rank.

The network is in `models/autoencoders/`, the terms of the loss in `autoencoder_loss.py`, the loop in
`training/loop.py`, the discriminator's part in `training/duel.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact
from pipeline.config import Config
from pipeline.data.split import validation_images
from pipeline.data.value_map import floats
from pipeline.tasks import text_autoencoder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.training.engine import Engine
    from pipeline.training.loop import Task
    from pipeline.training.ranks import Ranks

PREVIEW_IMAGES = 8  # held-out images in a preview, each above its reconstruction: a square of 4 x 4


def flops(config: Config, inputs: dict[str, Artifact]) -> int:
    """Of a forward pass for a sample: encoder and decoder."""
    from models import costs

    return costs.autoencoder(config.autoencoder.model, config.data.channels, config.data.sides).flops


def build(config: Config, inputs: dict[str, Artifact], ranks: Ranks) -> tuple[nn.Module, Task]:
    """The network with its first weights, and what the loop needs to know about this stage."""
    if config.data.source.kind == "text":
        return text_autoencoder.build(config, inputs, ranks)
    import torch

    from models import posterior, registry, similarity
    from models.autoencoders import latent_sides
    from pipeline.data import loader
    from pipeline.data.balance import training_order
    from pipeline.data.index import Index
    from pipeline.data.order import seeded
    from pipeline.data.pictures import grid
    from pipeline.tasks import autoencoder_loss
    from pipeline.tasks.trained import to_device
    from pipeline.training.loop import Task

    training, loss_config, data = config.autoencoder.training, config.autoencoder.loss, config.data
    torch.manual_seed(seeded(config.run.seed, "autoencoder/weights"))
    model: Any = registry.build("autoencoders", config.autoencoder.model, channels=data.channels)
    if training.activation_checkpointing:
        registry.checkpoint_activations(model, config.autoencoder.model["kind"])
    sides = latent_sides(model, data.sides)
    latent = (model.latent_channels, *sides)
    train, val = (Index.open(inputs["ingest"].path, split, data.cache) for split in ("train", "val"))
    order = training_order(train, data, train.classes, training.batch_size, config.run.seed)

    codebook = getattr(model, "codebook", None)
    held = "kl" if codebook is None else "commitment"  # what holds the latents
    distances, weights = autoencoder_loss.terms(config, ranks.device)
    weights[held] = loss_config.kl_weight if codebook is None else loss_config.commitment
    fight = autoencoder_loss.opponent(config, model, ranks.device)

    def parts(
        network: nn.Module, images: Tensor, noise: Tensor, turned: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Reconstruction, moments, and by image the terms of the loss; the KL divergence in nats an image element.
        turned: as `autoencoder_loss.turn` has it, of latents."""
        x = floats(images)
        reconstruction, moments = network(x, noise) if turned is None else network(x, noise, turned)
        if turned is not None:
            x = posterior.turned(x, turned[0] * model.factor, turned[1])
        reconstruction, moments = reconstruction.float(), moments.float()
        reconstruction = reconstruction.view_as(reconstruction)  # a gradient down to here meets no hook of DeepSpeed's
        terms = {name: distance(x, reconstruction) for name, distance in distances.items()}
        terms[held] = posterior.kl(moments) / x[0].numel() if codebook is None else model.commitment(moments)
        return reconstruction, moments, terms

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        # E_q[|x - D(z)|] + beta KL(q(z|x) || N(0, 1)): Kingma & Welling 2013, eq. 7, as weighted by Rombach et al. 2022
        turned = None  # only of model kl
        if loss_config.equivariance:
            turned = autoencoder_loss.turn(config, int(batch["position"]), sides[0], model.factor)
        reconstruction, _, terms = parts(network, batch["images"], batch["noise"], turned)
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
        """Means over the held-out images; PSNR (dB, of images in [0, 1], which the
        data's own range is brought to) is a mean of each image's own, sharpness the
        energy of the reconstructions' gradients over that of the images'."""
        extra = [name for name in distances if name != "reconstruction"]
        names = ("loss", "psnr", held, *extra, "energy", "sharpness", "count")
        total = torch.zeros(len(names), dtype=torch.float64)
        uses = torch.zeros(0 if codebook is None else len(codebook.counts), device=ranks.device)
        with engine.weights("ema"):
            for batch in validation():
                batch = to_device(batch, ranks.device)
                reconstruction, moments, terms = parts(engine.module, batch["images"], batch["noise"])
                target = floats(batch["images"])
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
        places = latent_sides(model, images.shape[2:])
        noise = torch.zeros(len(images), model.latent_channels, *places, device=ranks.device)  # the posterior's mean
        with engine.weights("ema"):
            reconstruction, _, _ = parts(engine.module, images, noise)
        values, half = val.values, len(images) // 2
        back = reconstruction if values else ((reconstruction.clamp(-1, 1) + 1) * 127.5).round().byte()
        rows = torch.cat([images[:half], back[:half], images[half:], back[half:]])  # originals above reconstructions
        cells = rows.permute(0, 2, 3, 1).cpu().numpy()
        return {"reconstructions/val": grid(values.shown(values.values(cells, -1)) if values else cells, columns=half)}

    return model, Task("autoencoder", loss, batches, validate, preview, fight=fight)
