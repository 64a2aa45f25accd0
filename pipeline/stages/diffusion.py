"""Stage 4, diffusion: a network that predicts noise (or its like) in the latent space, trained on cached latents.

The network is in `models/backbones/`, the loss in `models/diffusion/objectives.py`, the loop in `loop.py`. Here: what
is built, validation, previews, and the yardstick that the validation loss is measured against.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact, Writer, check_inputs
from pipeline.config import Config
from pipeline.data.text_encoders import frozen_encoder
from pipeline.errors import UserError
from pipeline.evaluation.curve import prepare
from pipeline.files import sha256_file, write_json
from pipeline.schema.section import result_fields
from pipeline.tasks.diffusion import options
from pipeline.tasks.gaussian_denoiser import gaussian_loss
from pipeline.tasks.inside import teacher_file

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster
    from pipeline.tracking.tracker import Spool


def recipe(config: Config) -> dict[str, Any]:
    """What decides on the weights besides the latents."""
    from models import registry
    from pipeline.data.balance import balance_recipe
    from pipeline.tasks.begin import training_recipe

    section = result_fields(config.diffusion)
    section["training"] = training_recipe(config, "diffusion")
    if (align := config.diffusion.align) and align.teacher != "self":
        section["align"]["teacher"] = sha256_file(teacher_file(align))
    section["backbone"] = registry.resolve("backbones", config.diffusion.backbone)
    if encoder := frozen_encoder(config):
        section["condition"]["caption"]["encoder"] = {key: encoder[key] for key in ("kind", "digest")}
    return {**section, "seed": config.run.seed, "lanes": config.data.lanes, **balance_recipe(config.data)}


def run(config: Config, inputs: dict[str, Artifact], writer: Writer, cluster: Cluster, spool: Spool) -> dict[str, Any]:
    """Refuse latents and captions of other encoders, train by the cluster's ranks, compare with the best Gaussian
    denoiser."""
    from pipeline.tasks import trained
    from pipeline.tasks.begin import planned_weights

    check_encoder(config, inputs)
    check_inputs(inputs["encode"], {"autoencoder": inputs["autoencoder"], "ingest": inputs["ingest"]})
    first = planned_weights(config, "diffusion", writer.recipe)
    if config.diffusion.fd.every:
        threads = config.cluster.least_threads
        about = {"config": config.model_dump(mode="json", by_alias=True), "ingest": str(inputs["ingest"].path)}
        described = next(iter(cluster.map(prepare, [{**about, "threads": threads}], threads=threads, gpus=1)))
        spool.tags({"ldm.fd_curve": described})
    summary = trained.train("diffusion", config, inputs, writer, cluster, spool, first)
    what, training = options(config, inputs), config.diffusion.training
    if training.lora:
        what["adapter"] = {"base": writer.recipe["training"]["init_from"], "scale": training.lora.scale}
        given = str(training.init_from)
        summary["base"] = [str(first), *([given] if given.startswith("models:") else [])]
    write_json(writer.path / "model.json", what)
    gaussian = None if config.diffusion.distil else gaussian_loss(config, inputs["encode"])
    if gaussian is not None:
        summary["gaussian_loss"] = gaussian
        spool.metrics({"diffusion/gaussian_loss": gaussian}, summary["step"])
    return summary


def check_encoder(config: Config, inputs: dict[str, Artifact]) -> None:
    """Refuse embeddings of another text encoder than the config's."""
    wanted = frozen_encoder(config)
    if wanted is None:
        return
    found = inputs["conditions"].summary["caption"]["encoder"]
    if found.get("digest") != wanted["digest"]:
        raise UserError(
            f"{inputs['conditions'].path}: captions embedded by {found['kind']} ({found.get('digest', '')[:12]}), and "
            f"`diffusion.condition.caption.encoder` is {wanted['kind']} ({wanted['digest'][:12]}); run again with "
            "--rebuild conditions"
        )


def headline(summary: dict[str, Any]) -> str:
    yardstick = f" (best Gaussian denoiser: {summary['gaussian_loss']:.4f})" if "gaussian_loss" in summary else ""
    return f"validation loss {summary['val_loss']:.4f}{yardstick}"
