"""Reads the folder of a whole pipeline of diffusers: an autoencoder and a denoiser that belong together, the path that
the denoiser was trained on, and the names of its classes.

    model_index.json   which parts there are, id2label   scheduler/   betas, what is predicted
    vae/, transformer/ the networks (of an LDMPipeline: vqvae/, unet/)

One that `ldm export` has written says in ldm.json what these files do not. Networks are read by `diffusers_read.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.generate import diffusers_read
from pipeline.generate.diffusers_config import Imported
from pipeline.generate.diffusers_pipeline import PREDICTIONS, SCHEDULES, TRAIN_STEPS

INDEX, OURS = "model_index.json", "ldm.json"
PARTS = {"DiTPipeline": ("vae", "transformer"), "LDMPipeline": ("vqvae", "unet")}
# As diffusers' pipelines sample where they are not told; guidance only away from a null class.
DEFAULTS = {"sampler": "ddim", "steps": 50, "guidance": 4.0}


@dataclass(frozen=True)
class Pipeline:
    """A model of two networks. path, prediction, condition, classes: as of a `Generator`'s options."""

    kind: str
    autoencoder: Imported
    denoiser: Imported
    path: dict[str, Any]
    prediction: str
    condition: dict[str, Any]
    classes: list[str]
    notes: tuple[str, ...]


def is_pipeline(folder: Path) -> bool:
    """Whether it is the folder of a whole pipeline."""
    return any((folder / name).is_file() for name in (INDEX, OURS))


def read(folder: Path, null_class: bool = False, variant: str | None = None) -> Pipeline:
    """The pipeline in a folder. UserError names what is missing, or has no place here.

    null_class, variant: as of `diffusers_read.read`.
    """
    kind, ours = "ldm", _ours(folder)
    index: dict[str, Any] = {}
    parts = ("vae", "unet" if (folder / "unet").is_dir() else "transformer")
    if (folder / INDEX).is_file():
        index = _json(folder / INDEX)
        kind = str(index.get("_class_name"))
        if kind not in PARTS:
            inside = ", ".join(sorted(path.parent.name for path in folder.glob("*/config.json"))) or "none"
            raise UserError(
                f"{folder}: a {kind}; expected one of {', '.join(PARTS)}; its networks one by one may be: {inside}"
            )
        parts = PARTS[kind]
    for part in (*parts, *(() if ours else ("scheduler",))):
        file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        if not file.is_file():
            raise UserError(f"{folder}: {part}/{file.name} is missing, a part of this {kind}; fetch the folder again")
    path, prediction, notes = (ours["path"], ours["prediction"], []) if ours else _scheduler(folder / "scheduler")
    autoencoder = diffusers_read.read(folder / parts[0], variant=variant)
    denoiser = diffusers_read.read(folder / parts[1], null_class or bool(ours), variant)
    for found, family, part in ((autoencoder, "autoencoders", parts[0]), (denoiser, "backbones", parts[1])):
        if found.family != family:
            raise UserError(
                f"{folder / part}: a network of another kind ({found.options['kind']}) than {kind} has there"
            )
    if denoiser.channels != autoencoder.options["latent_channels"]:
        raise UserError(
            f"{folder}: {parts[1]} is for latents of {denoiser.channels} channels, but those of {parts[0]} have "
            f"{autoencoder.options['latent_channels']}"
        )
    if denoiser.size is None:
        raise UserError(f"{folder / parts[1]}: `sample_size`, the side of the latents, is missing in config.json")
    classes: list[str] = []
    condition: dict[str, Any] = {"kind": "none"}
    if denoiser.classes is not None:
        classes = ours["classes"] if ours else _names(index.get("id2label") or {}, denoiser.classes, folder)
        # a DiT's null class is trained (Peebles and Xie 2023 drop a tenth); a UNet's may be one that was put there
        trained = null_class or denoiser.options["kind"] == "dit"
        condition = ours["condition"] if ours else {"kind": "class", "drop": 0.1 if trained else 0.0}
    if len(classes) != (denoiser.classes or 0):
        raise UserError(f"{folder / OURS}: names {len(classes)} classes, {parts[1]} has {denoiser.classes}")
    said = tuple(f"{part}: {note}" for part, found in zip(parts, (autoencoder, denoiser), strict=True)
                 for note in found.notes)  # fmt: skip
    return Pipeline(kind, autoencoder, denoiser, path, prediction, condition, classes, (*said, *notes))


def _ours(folder: Path) -> dict[str, Any]:
    """What `ldm export` has left, checked: path, prediction, condition, classes; empty where it wrote nothing."""
    from models.diffusion.objectives import check
    from pipeline.schema.conditions import Condition
    from pipeline.schema.diffusion import DiffusionPath
    from pipeline.schema.section import result_fields

    if not (folder / OURS).is_file():
        return {}
    found = _json(folder / OURS)
    try:
        check(found["prediction"])
        return {
            "path": result_fields(DiffusionPath.model_validate(found["path"])),
            "prediction": found["prediction"],
            "condition": result_fields(Condition.model_validate(found["condition"])),
            "classes": [str(name) for name in found["classes"]],
        }
    except (KeyError, TypeError, ValueError):  # pydantic's are of the last kind
        raise UserError(f"{folder / OURS}: not as `ldm export` writes it; export the model again") from None


def _scheduler(folder: Path) -> tuple[dict[str, Any], str, list[str]]:
    """The path and prediction of a scheduler_config.json, whichever class it is of: how it samples is left."""
    from pipeline.schema.diffusion import DiffusionPath
    from pipeline.schema.section import result_fields

    file = folder / "scheduler_config.json"
    config = _json(file)
    name = config.get("_class_name")
    known = {
        "beta_schedule": tuple(SCHEDULES), "num_train_timesteps": (TRAIN_STEPS,), "trained_betas": (None,),
        "rescale_betas_zero_snr": (False, None), "prediction_type": tuple(PREDICTIONS.values()),
    }  # fmt: skip
    silent = {"trained_betas": None, "rescale_betas_zero_snr": False, "prediction_type": "epsilon"}
    for key, values in known.items():
        value = config.get(key, silent.get(key, "missing"))
        if value not in values:
            expected = " or ".join(map(str, values))
            raise UserError(f"{file}: `{key}: {value}` of this {name} has no place here (expected {expected})")
    schedule = SCHEDULES[config["beta_schedule"]]
    betas = {} if schedule == "ddpm_cosine" else {"betas": [config.get("beta_start"), config.get("beta_end")]}
    try:
        path = DiffusionPath.model_validate({"kind": "variance_preserving", "schedule": schedule, **betas})
    except ValueError:
        start, end = config.get("beta_start"), config.get("beta_end")
        raise UserError(f"{file}: betas from {start} to {end}; expected 0 < beta_start <= beta_end < 1") from None
    prediction = next(
        ours for ours, theirs in PREDICTIONS.items() if theirs == config.get("prediction_type", "epsilon")
    )
    clips = config.get("clip_sample", name in ("DDIMScheduler", "DDPMScheduler")) or config.get("thresholding")
    return result_fields(path), prediction, ["its sampler cuts off each x0, ours does not"] if clips else []


def _names(labels: Any, count: int, folder: Path) -> list[str]:
    """Names of classes 0 to count - 1 by an `id2label`, whose synonyms stand behind commas: the first of them, with the
    number where it comes twice; where there is none the number alone."""
    if not isinstance(labels, dict) or not all(isinstance(name, str) for name in labels.values()):
        raise UserError(f"{folder / INDEX}: `id2label` is not a table from numbers to names")
    names = [labels.get(str(i), str(i)).partition(",")[0].strip() for i in range(count)]
    often = Counter(names)
    return [name if often[name] == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def _json(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{file}: not the JSON of a pipeline; fetch it again")
    return found
