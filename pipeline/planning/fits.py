"""Whether the models of a config fit its images, latents and patches: asked before anything runs, on meta tensors."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.data.waves import transform_of
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.schema.synonyms import KINDS, squeezed
from pipeline.tasks import begin, inside


def check_models(config: Config) -> tuple[int, tuple[int, ...]]:
    """Check the options of the models, and that images, latents and patches fit; gives channels and sides of a latent.

    Imports torch, allocates nothing (meta device). A pinned autoencoder (`autoencoder.from`) is read where it lies.
    Raises UserError naming the key.
    """
    from models import registry
    from models.autoencoders import latent_sides
    from models.diffusion.denoiser import beside, check_attends
    from models.lora import adapted
    from models.patches import size_of
    from pipeline.artifacts import Artifact
    from pipeline.data.latents import BROUGHT
    from pipeline.training.muon import matrices

    options, data = config.autoencoder.model, config.data
    if config.autoencoder.from_:
        pinned = Artifact.load(config.autoencoder.from_, "autoencoder")
        options, channels = pinned.recipe["model"], read_json(pinned.path / "model.json")["channels"]
        if channels != data.channels:
            raise UserError(
                f"`data.channels`: {data.channels}, but the autoencoder at {pinned.path} was trained on {channels}; "
                f"set {channels}, or train another autoencoder"
            )
    if config.latents.statistics == "autoencoder" and not (
        config.autoencoder.from_ and (Path(config.autoencoder.from_) / BROUGHT).exists()
    ):
        raise UserError(
            "`latents.statistics`: autoencoder goes with `autoencoder.from`, one that was imported and brings "
            "statistics; set measured"
        )
    key = "autoencoder.model"
    try:
        autoencoder: Any = registry.outline("autoencoders", options, channels=data.channels)
        if config.autoencoder.training.activation_checkpointing and not config.autoencoder.from_:
            registry.checkpoint_activations(autoencoder, options["kind"])
        _check_sizes(config, autoencoder)
        _check_clips(config, autoencoder)
        _check_loss_fits(config)
        _check_values(config)
        _check_text(config, autoencoder)
        channels, sides = autoencoder.latent_channels, latent_sides(autoencoder, data.sides)
        if data.buckets is not None and len(sides) != 2:
            raise UserError(
                f"`data.buckets`: latents of sides {list(sides)} have no ratio of height and width; leave it out"
            )
        key = "diffusion.backbone"
        guess = channels if config.diffusion.self_conditioning else 0
        more = beside(config.diffusion.backbone, config.diffusion.condition.model_dump()["spatial"], sides, guess)
        backbone = registry.outline(
            "backbones", config.diffusion.backbone, channels=channels, size=size_of(sides), **more
        )
        caption = config.diffusion.condition.caption
        check_attends(backbone, config.diffusion.backbone, caption.model_dump() if caption else None)
        inside.check(config.diffusion, backbone, data.channels, data.size)
        if config.diffusion.training.optimizer == "muon":
            matrices(backbone)
        key = "diffusion.training.lora.targets"
        if lora := config.diffusion.training.lora:
            if importlib.util.find_spec("peft") is None:
                raise UserError("`diffusion.training.lora` needs peft; pip install 'ldm-pipeline[lora]'")
            adapted(backbone, lora.targets)
        key = "diffusion.backbone"
        if config.diffusion.training.activation_checkpointing:
            registry.checkpoint_activations(backbone, config.diffusion.backbone["kind"])
        if data.buckets is not None:
            _check_shapes(config, backbone, channels, autoencoder.factor)
    except ValueError as error:
        given = options if key == "autoencoder.model" else config.diffusion.backbone
        raise UserError(f"`{key}`: {_kind_meant(str(error), given)}") from None
    begin.check(config, channels, sides)
    _check_student(config)
    return channels, sides


def _check_sizes(config: Config, autoencoder: Any) -> None:
    """The images must be whole numbers of the pixels that a latent stands for; a kind without such a factor says itself
    which sides it takes (`latent_sides`)."""
    from pipeline.schema.data import text

    pictures = getattr(autoencoder, "of_images", True) or getattr(autoencoder, "of_clips", False)
    if not pictures and config.latents.views != ("as_is",):
        raise UserError(
            f"`latents.views`: {', '.join(config.latents.views)} are of images, and `autoencoder.model` is of other "
            "data; set [as_is]"
        )
    data, factor = config.data, getattr(autoencoder, "factor", 1)
    if data.sound is not None and (data.sound.mels % factor or data.sound.frames % factor):
        raise UserError(
            f"`data.sound`: {data.sound.mels} mels x {data.sound.frames} frames (seconds x rate / hop) are no multiples"
            f" of {factor}, the side of what is one latent (`autoencoder.model`); change one of them"
        )
    if data.sound is None and data.size % factor:
        raise UserError(
            f"`data.size`: {data.size} is not a multiple of {factor}, the pixels a side of one latent "
            "(`autoencoder.model`); change one of them"
        )
    for shape in data.shapes:
        if any(pixels % factor for pixels in shape):
            raise UserError(
                f"`data.buckets`: {text(shape)} (height x width) are no multiples of {factor}, the pixels a side of "
                "one latent (`autoencoder.model`); change one of them"
            )


def _check_values(config: Config) -> None:
    """UserError for what takes 8-bit pictures only, where `data.values` or `data.sound` says that images are none."""
    if not config.data.measured:
        return
    data = "`data.values`"
    if config.data.sound is not None:
        data = "sound"
        if config.latents.views != ("as_is",):
            shown = ", ".join(config.latents.views)
            raise UserError(f"`latents.views`: {shown} are of images, and `data.source` is of sound; set [as_is]")
        if config.autoencoder.loss.equivariance:
            raise UserError(
                "`autoencoder.loss.equivariance`: turns images, and `data.source` is of sound; leave it out"
            )
        if config.diffusion.condition.spatial:
            raise UserError("`diffusion.condition.spatial` is of images, and `data.source` is of sound; leave it out")
        try:
            transform_of(config.data.sound).bank  # noqa: B018
        except ValueError as error:
            raise UserError(f"`data.sound`: {error}; give fewer `mels`, a larger `window` or `lowest`") from None
    kind = config.autoencoder.loss.perceptual.kind
    if kind not in ("none", "random"):
        raise UserError(f"`autoencoder.loss.perceptual.kind`: {kind} knows 8-bit pictures, not {data}; give none")
    if config.evaluate.agreement:
        raise UserError(f"`evaluate.agreement`: its judges know 8-bit pictures, not {data}; leave it out")
    if config.register_.gate:
        raise UserError(f"`register.gate`: its audit knows 8-bit pictures, not {data}; leave it out")
    if config.diffusion.align:
        raise UserError(f"`diffusion.align`: its network knows 8-bit pictures, not {data}; leave it out")


def _check_text(config: Config, autoencoder: Any) -> None:
    """UserError where only one of source and autoencoder is of text, and for what takes images only."""
    text, kind = getattr(autoencoder, "of_text", False), type(autoencoder).__module__.rpartition(".")[2]
    if text != (config.data.source.kind == "text"):
        raise UserError(
            f"`autoencoder.model.kind`: {kind} is {'of text' if text else 'not of text'}, and `data.source.kind` is "
            f"{config.data.source.kind}; kind text and source text go together"
        )
    if not text:
        for name in ("judge", "noise_left"):
            if getattr(config.evaluate, name):
                raise UserError(f"`evaluate.{name}` is of text, and these are images; leave it out")
        return
    section, loss = config.diffusion, config.autoencoder.loss
    asked = {
        "autoencoder.loss.ssim": loss.ssim,
        "autoencoder.loss.equivariance": loss.equivariance,
        "autoencoder.loss.perceptual": loss.perceptual.kind != "none",
        "autoencoder.loss.adversarial": loss.adversarial.weight,
        "diffusion.condition.spatial": section.condition.spatial,
        "diffusion.align": section.align,
        "diffusion.fd.every": section.fd.every,
        "evaluate.agreement": config.evaluate.agreement,
        "register.gate": config.register_.gate,
    }
    for key, value in asked.items():
        if value:
            raise UserError(f"`{key}` is of images, and `data.source.kind: text` has none; leave it out")
    if caption := section.condition.caption:
        before, most = getattr(config.data.source, "before", None), getattr(config.data.source, "before_bytes", 0)
        if before is None:
            raise UserError(
                "`diffusion.condition.caption` of text is the text before: name its column (`data.source.before`)"
            )
        if caption.encoder.kind == "trained" and caption.tokens <= most:
            raise UserError(
                f"`diffusion.condition.caption.tokens`: {caption.tokens}, of which the end of the text before would be "
                f"cut off; give at least {most + 1}, or less `data.source.before_bytes` ({most})"
            )


def _check_clips(config: Config, autoencoder: Any) -> None:
    """UserError where only one of source and autoencoder is of clips, and for what takes images only."""
    clips, kind = getattr(autoencoder, "of_clips", False), type(autoencoder).__module__.rpartition(".")[2]
    if clips != (config.data.clip is not None):
        raise UserError(
            f"`autoencoder.model.kind`: {kind} is {'of clips' if clips else 'not of clips'}, and `data.source.kind` is "
            f"{config.data.source.kind}; kind clips and source clips go together"
        )
    section, loss = config.diffusion, config.autoencoder.loss
    asked = {
        "autoencoder.loss.equivariance": loss.equivariance,
        "autoencoder.loss.perceptual.kind": loss.perceptual.kind == "classifier",
        "autoencoder.loss.adversarial": loss.adversarial.weight,
        "diffusion.condition.spatial": section.condition.spatial,
        "diffusion.align": section.align,
        "diffusion.fd.every": section.fd.every,
        "evaluate.agreement": config.evaluate.agreement,
        "register.gate": config.register_.gate,
    }
    for key, value in asked.items() if clips else ():
        if value:
            raise UserError(f"`{key}` is of images, and `data.source.kind: clips` has none; leave it out")


def _check_student(config: Config) -> None:
    """A student has a sampler and a number of steps of its own, and its teacher's guidance in it; a denoiser takes all
    others."""
    student, section = config.diffusion.distil, config.evaluate
    if student and config.diffusion.self_conditioning:
        raise UserError(
            "`diffusion.self_conditioning`: a student's few jumps have no guess before them, so there is none of a "
            "teacher that is told its own; give another teacher"
        )
    condition = config.diffusion.condition
    if student and student.guidance != 1 and not (condition.tells and condition.drop > 0):
        raise UserError(
            f"`diffusion.distil.guidance`: {student.guidance:g} needs a teacher that was sometimes told nothing "
            "(`diffusion.condition.drop` above 0); give 1"
        )
    if student and (section.sampler, section.guidance, section.steps) != ("few", 1, student.steps):
        raise UserError(
            f"`evaluate`: sampler {section.sampler}, guidance {section.guidance:g}, steps {section.steps}, of a "
            "student (`diffusion.distil`) whose guidance is in its answers; set sampler: few, guidance: 1 and "
            f"steps: {student.steps}"
        )
    if student and section.grid not in ("auto", "few"):
        raise UserError(f"`evaluate.grid`: {section.grid}, of a student, whose jumps have their own; set few or auto")
    if student and section.noise_left:
        raise UserError(f"`evaluate.noise_left`: {section.noise_left:g}, of a student, whose jumps leave none; set 0")
    if section.sampler == "few" and not student:
        raise UserError("`evaluate.sampler`: few is for a student of few steps (`ldm distil`); give another one")


def _kind_meant(said: str, options: Mapping[str, Any]) -> str:
    """The message with our name for a model of others, where letters would have guessed another (`vae` is `kl`)."""
    kind = KINDS.get(squeezed(str(options.get("kind"))))
    if not kind or not said.startswith("kind:"):
        return said
    return re.sub(r"; (did you mean '\w+'\? )?valid:", f"; did you mean '{kind}'? valid:", said, count=1)


def needs_gpu(config: Config) -> list[str]:
    """What ranks on this machine's CPUs would refuse, in words; nothing where a cluster is joined, which is asked by
    the run and its dry run (`precision.check_precision`)."""
    import torch

    joined = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if config.diffusion.training.precision == "fp16" and not joined and not torch.cuda.is_available():
        return [
            "`diffusion.training.precision`: fp16 needs a GPU, and this machine has none: it will be refused here; set "
            "auto or fp32, unless it runs elsewhere"
        ]
    return []


def _check_shapes(config: Config, backbone: Any, channels: int, factor: int) -> None:
    """The backbone, on the meta device, must take latents of every bucket's shape."""
    import torch

    from models.costs import outlined
    from pipeline.schema.data import text

    for height, width in config.data.shapes:
        with torch.device("meta"):
            x = torch.empty(1, channels, height // factor, width // factor)
            try:
                fits = backbone(x, torch.empty(1), outlined(backbone)).shape == x.shape
                why = "another shape comes out"
            except (ValueError, RuntimeError) as error:
                fits, why = False, str(error).splitlines()[0]
        if not fits:
            raise UserError(
                f"`data.buckets`: {text((height, width))} gives latents of {text(x.shape[2:])}, which "
                f"`diffusion.backbone` does not take ({why}); change `multiple` or `shapes`, or the backbone"
            )


def _check_loss_fits(config: Config) -> None:
    """The images must be large enough for the windows and networks of the autoencoder's loss."""
    loss, size = config.autoencoder.loss, min(min(shape) for shape in config.data.shapes)
    least, what = 0, ""
    if loss.ssim:
        least, what = 11, "ssim"
    if loss.perceptual.kind == "lpips":
        least, what = max((least, what), ({"vgg": 16, "alex": 31}[loss.perceptual.network], "perceptual"))
    if loss.adversarial.weight:
        least, what = max((least, what), (3 * 2**loss.adversarial.layers, "adversarial.layers"))
    if size < least:
        key = "size" if config.data.buckets is None else "buckets"
        raise UserError(
            f"`data.{key}`: {size} pixels are too few for `autoencoder.loss.{what}`, which needs {least}; change either"
        )
