"""Stage 2, autoencoder: images -> latents -> images, trained with a reconstruction loss and a KL divergence, and, where
the config says so, SSIM, a perceptual distance and a discriminator.

The network is in `models/autoencoders/`, the loop in `loop.py`, the discriminator's part in `duel.py`. Here: what is
built, the loss, validation, previews, and the yardstick that the result is measured against.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact, Writer
from pipeline.config import Config
from pipeline.files import write_json
from pipeline.networks import load_model
from pipeline.schema.section import result_fields
from pipeline.tasks.patch_pca import patch_pca

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster
    from pipeline.tracking.tracker import Spool


def recipe(config: Config) -> dict[str, Any]:
    """What decides on the weights besides the data."""
    from models import registry
    from pipeline.data import clips, tokens
    from pipeline.data.balance import balance_recipe
    from pipeline.data.index import skip_recipe
    from pipeline.tasks import autoencoder_loss
    from pipeline.tasks.begin import training_recipe

    own: dict[str, Any] = {
        "model": registry.resolve("autoencoders", config.autoencoder.model),
        "loss": autoencoder_loss.recipe(config),
        "training": training_recipe(config, "autoencoder"),
    }
    if own["model"].get("tokens") == "bpe":  # the vocabulary's size is of the model, the text is the input
        own["tokenizer"] = tokens.VERSION
    data = result_fields(config.data)
    order = {**{key: data[key] for key in ("augment", "lanes", "on_corrupt")}, **balance_recipe(config.data)}
    order |= skip_recipe(config.data) | clips.order_recipe(config.data)
    return {**own, "seed": config.run.seed, "order": order}


def run(config: Config, inputs: dict[str, Artifact], writer: Writer, cluster: Cluster, spool: Spool) -> dict[str, Any]:
    """Train by the cluster's ranks, then write how to build the model and compare it with patch PCA."""
    from models import registry
    from pipeline.data import tokens
    from pipeline.data.value_map import ValueMap
    from pipeline.tasks import autoencoder_loss, trained
    from pipeline.tasks.begin import planned_weights

    first = planned_weights(config, "autoencoder", writer.recipe)
    config, told = autoencoder_loss.with_perceptual(config, inputs["ingest"], writer, cluster, spool)
    text = config.data.source.kind == "text"
    model_options = registry.resolve("autoencoders", config.autoencoder.model)
    if text:  # before the ranks, which read it
        tokens.keep(tokens.trained(model_options, inputs["ingest"], config.run.root), writer.path)
    summary = trained.train("autoencoder", config, inputs, writer, cluster, spool, first)
    values = ValueMap.load(inputs["ingest"].path)
    options: dict[str, Any] = {"model": config.autoencoder.model, "channels": config.data.channels}
    options |= {"values": values.json()} if values else {}
    write_json(writer.path / "model.json", options)
    model: Any = load_model(writer.path)
    if hasattr(model, "factor"):  # else no patch of the image is that of a latent
        summary["pca_psnr"] = patch_pca(config, inputs["ingest"], model)
        spool.metrics({"autoencoder/pca_psnr": summary["pca_psnr"]}, summary["step"])
    return summary | told


def headline(summary: dict[str, Any]) -> str:
    if "val_tokens" in summary:
        share, whole = summary["val_tokens"], summary["val_passages"]
        return f"{share:.2%} of held-out tokens exact, {whole:.1%} of held-out passages, posteriors drawn"
    if "imported" in summary:
        return f"imported from {summary['imported']}"
    text = f"PSNR {summary['val_psnr']:.2f} dB of held-out images, posteriors drawn"
    if "pca_psnr" in summary:
        text += f" (patch PCA of the same size: {summary['pca_psnr']:.2f} dB)"
    if "val_codes_used" in summary:
        text += f"; {summary['val_codes_used']:.1%} of the codes used, perplexity {summary['val_perplexity']:.0f}"
    if "perceptual" in summary:
        text += f"; perceptual distance {summary['val_perceptual']:.4f}, {summary['perceptual']['description']}"
    return text
