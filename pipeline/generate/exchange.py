"""Whole models to and from folders of other programs: what is written where, and what the pipeline takes back.

Names and layouts of the other side are in `diffusers_read.py` and `diffusers_write.py`, what makes a pipeline of them
in `diffusers_pipeline.py` (out) and `diffusers_folder.py` (in).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.artifacts import Artifact, Lease, Writer
from pipeline.errors import UserError
from pipeline.files import atomic_path, read_json, sha256_file, write_json
from pipeline.generate import diffusers_write


def fresh(folder: Path) -> Path:
    """The folder, if it is empty or not there. UserError otherwise: nothing is mixed or written over."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"-o {folder}: not an empty folder; give a new one")
    return folder.absolute()


def export_diffusers(model: str, out: Path, root: Path) -> list[str]:
    """Write a model as diffusers' folders under `out`; gives a line for each.

    model: an autoencoder's artifact (out/vae), or whatever `ldm sample` takes: also out/transformer or out/unet, and
    as far as diffusers can sample from it out/scheduler, out/model_index.json and a script. ldm.json holds what
    diffusers' classes do not. UserError before anything is written if an option has no place there.
    """
    from pipeline.generate.folder import load_pretrained

    out, source = fresh(out), Path(model)
    if (source / "manifest.json").exists() and read_json(source / "manifest.json").get("stage") == "autoencoder":
        from pipeline.networks import load_model

        alone: Any = load_model(Artifact.load(source).path)
        side = 32 * alone.factor  # it takes any; diffusers wants one written down
        diffusers_write.write(out / "vae", *diffusers_write.describe(alone, size=side))
        return [f"AutoencoderKL in {out / 'vae'}"]
    generator = load_pretrained(model, device="cpu", root=root)
    generator.pictures_only("a pipeline of diffusers")
    if "student" in generator.options:
        raise UserError(f"{model}: is a student, and diffusers has no sampler for its jumps; give its teacher")
    latent, space = generator.options["latent"], generator.space
    if not isinstance(latent["size"], int):
        raise UserError(
            f"{model}: latents of sides {latent['size']}, and a diffusers pipeline has a square of them; sample with "
            "`ldm sample`"
        )
    part = "unet" if type(generator.network.backbone).__module__.endswith(".unet") else "transformer"
    image = latent["size"] * generator.autoencoder.factor
    described = {  # all before anything is written: either may be refused
        part: diffusers_write.describe(generator.network, size=latent["size"]),
        "vae": diffusers_write.normalised(
            *diffusers_write.describe(generator.autoencoder, size=image), space.mean, space.std
        ),
    }
    for name, (config, weights) in described.items():
        diffusers_write.write(out / name, config, weights)
    lines = [f"{config['_class_name']} in {out / name}" for name, (config, _) in described.items()]
    if "buckets" in latent:
        lines.append(f"of the model's {len(latent['buckets'])} shapes the square only, {image} pixels a side")
    kept = ("path", "prediction", "condition", "classes", "latent")
    statistics = {"mean": space.mean.tolist(), "std": space.std.tolist()}  # for whoever wants the raw latents
    options = {key: generator.options[key] for key in kept}
    write_json(out / "ldm.json", options | {"normalised": statistics, "about": generator.about})
    return [*lines, *_sampling(part, generator, out), _inputs(generator.options)]


def _sampling(part: str, generator: Any, out: Path) -> list[str]:
    """Write what diffusers needs to sample from a model, as far as it can; gives a line for each."""
    from pipeline.generate import diffusers_pipeline

    options, defaults = generator.options, generator.defaults
    scheduler = diffusers_pipeline.scheduler(options, diffusers_pipeline.shift_of(options, defaults))
    if scheduler is None:
        return [f"no scheduler of diffusers knows {options['prediction']} on {options['path']['kind']}: no script"]
    write_json(out / "scheduler" / "scheduler_config.json", scheduler)
    with atomic_path(out / diffusers_pipeline.SCRIPT) as temporary:
        Path(temporary).write_text(diffusers_pipeline.script(part, options, defaults))
    lines, scale = [], diffusers_pipeline.guidance_of(options, defaults)
    index = diffusers_pipeline.index(part, options)
    if index is not None:  # last: with it the folder is one that DiffusionPipeline loads
        write_json(out / "model_index.json", index)
        labels = "[0, 1]" if diffusers_pipeline.class_names(options) else "[0] * 2"
        call = f"(class_labels={labels}, guidance_scale={scale:g}, num_inference_steps={defaults['steps']})"
        lines = [f'DiTPipeline: DiffusionPipeline.from_pretrained("{out}"){call}.images']
    other = scale == 1 or defaults["guidance_interval"] or defaults["guidance_rescale"]
    if defaults["guidance"] != 1 and other:
        lines.append(f"the model's own guidance has no place there: plain, with a scale of {scale:g}")
    return [*lines, f"samples by diffusers alone: python {out / diffusers_pipeline.SCRIPT}"]


def _inputs(options: dict[str, Any]) -> str:
    """What the network there takes and gives, in a line."""
    from models.diffusion.process import EDM, make_path
    from models.diffusion.steps import Steps

    inputs, path = "timesteps are 1000 t; the denoiser takes normalised latents, as the vae has them", options["path"]
    if path["kind"] == "edm":  # its input scale and clock (models/diffusion/process.py) are no part of the network
        times = f"1000 log(sigma / {EDM.SIGMA_MIN}) / log({EDM.SIGMA_MAX:g} / {EDM.SIGMA_MIN})"
        inputs = f"timesteps are {times}; the denoiser takes noised latents of the vae over sqrt(1 + sigma^2)"
    if isinstance(make_path(**path), Steps):
        inputs = inputs.replace("1000 t", "1000 t - 1")
    gives = f"{options['prediction']} of the path {path['kind']} (ldm.json)"
    return f"{inputs} and gives the {gives}; the null class is the last one"


def import_diffusers(source: Path, out: Path, null_class: bool = False, variant: str | None = None) -> str:
    """Read a folder that diffusers has saved into one that the pipeline takes; gives the config's lines for it.

    An autoencoder becomes a finished artifact, for `autoencoder.from`; a denoiser a folder with the weights of the
    network, for `diffusion.training.init_from`; a whole pipeline a model's folder, which samples, with both in it.
    """
    from pipeline.generate import diffusers_folder, diffusers_read

    out = fresh(out)
    if diffusers_folder.is_pipeline(source):
        return _pipeline(diffusers_folder.read(source, null_class, variant), source, out)
    found = diffusers_read.read(source, null_class, variant)
    return _autoencoder(found, source, out) if found.family == "autoencoders" else _denoiser(found, out)


def _pipeline(found: Any, source: Path, out: Path) -> str:
    import torch

    from pipeline.data.latents import LatentSpace
    from pipeline.generate import diffusers_folder
    from pipeline.generate.folder import save_pretrained

    autoencoder, denoiser = found.autoencoder, found.denoiser
    made = _artifact(autoencoder, source, out / "autoencoder")
    size, guides = denoiser.size * _factor(autoencoder), found.condition.get("drop", 0) > 0
    save_pretrained(
        out,
        name=source.absolute().name,
        image={"size": size, "channels": autoencoder.channels},
        options={
            "latent": {"channels": denoiser.channels, "size": denoiser.size},
            "backbone": denoiser.options,
            "condition": found.condition,
            "classes": found.classes,
            "path": found.path,
            "prediction": found.prediction,
        },
        autoencoder=autoencoder.options,
        autoencoder_weights=autoencoder.weights,
        denoiser_weights=denoiser.weights,
        space=LatentSpace(*(torch.tensor(values) for values in autoencoder.space)),
        defaults=diffusers_folder.DEFAULTS if guides else {**diffusers_folder.DEFAULTS, "guidance": 1.0},
        lineage={"autoencoder": {"fingerprint": made.fingerprint, "content": made.content}},
    )
    about = [f"the {found.kind} {source}, for data of {len(found.classes)} classes" if found.classes else
             f"the {found.kind} {source}, without classes", *found.notes, f"images: ldm sample {out} --out samples",
             "to train it on:"]  # fmt: skip
    section = {"backbone": denoiser.options, "condition": {"kind": found.condition["kind"]}, "path": found.path,
               "prediction": found.prediction, "training": {"init_from": str(out)}}  # fmt: skip
    return "\n".join(
        [
            *(f"# {line}" for line in about),
            f"data: {{size: {size}, channels: {autoencoder.channels}}}",
            f"autoencoder: {{from: {out / 'autoencoder'}}}",
            "latents: {statistics: autoencoder}",
            *_section(section),
        ]
    )


def _artifact(found: Any, source: Path, out: Path) -> Artifact:
    """A finished autoencoder, as if it had been trained here; with the space that its denoisers know."""
    from pipeline.data.latents import BROUGHT
    from pipeline.networks import save_weights

    with Lease(out / "work" / "lease") as lease:
        for which in ("ema", "live"):  # a trained one has both; here they are one
            save_weights(out / f"{which}.safetensors", found.weights)
        write_json(out / "model.json", {"model": found.options, "channels": found.channels})
        space = dict(zip(("mean", "std"), found.space, strict=True))
        write_json(out / BROUGHT, space)
        recipe = {"model": found.options, "imported": sha256_file(out / "ema.safetensors"), "latents": space}
        key = artifacts.fingerprint("autoencoder", recipe, {})
        return Writer("autoencoder", key, out, recipe, {}, lease).finish({"imported": str(source.absolute())})


def _autoencoder(found: Any, source: Path, out: Path) -> str:
    made = _artifact(found, source, out)
    size = f"  # images whose sides are multiples of {_factor(found)}"
    about = "".join(f"# {line}\n" for line in (made.name, *found.notes))
    statistics = "# latents: {statistics: autoencoder}  # for a denoiser that was published with it"
    return f"{about}data: {{channels: {found.channels}}}{size}\nautoencoder: {{from: {out}}}\n{statistics}"


def _factor(found: Any) -> int:
    """Image side over latent side of an autoencoder."""
    from pipeline.generate.diffusers_read import outline

    model: Any = outline(found)
    return int(model.factor)


def _denoiser(found: Any, out: Path) -> str:
    from pipeline.networks import save_weights

    condition = {"kind": "none" if found.classes is None else "class"}
    model = {"backbone": found.options, "condition": condition, "latent": {"channels": found.channels}}
    save_weights(out / "ema.safetensors", found.weights)
    write_json(out / "model.json", {**model, "classes": found.classes, "size": found.size})
    section = {"backbone": found.options, "condition": condition, "training": {"init_from": str(out)}}
    about = [f"for latents of {found.channels} channels" + (f" and {found.size} pixels a side" if found.size else "")]
    about += [f"for data of {found.classes} classes"] if found.classes is not None else []
    about.append("set `path` and `prediction` to what it was trained for, if you know")
    return "\n".join([*(f"# {line}" for line in [*about, *found.notes]), *_section(section)])


def _section(values: dict[str, Any]) -> list[str]:
    """Lines of a config's `diffusion`; JSON is YAML."""
    return ["diffusion:", *(f"  {key}: {json.dumps(value)}" for key, value in values.items())]
