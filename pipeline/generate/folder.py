"""A trained model as one folder, whole in itself, and the generator that it, an artifact or a run gives.

    config.json              how to build it and what it was made of      latents.json   the latent space
    autoencoder.safetensors  denoiser.safetensors (averaged weights)

With autoguidance also weaker.safetensors. In place of the denoiser an adapter has the files of `adapters.py`, and needs
its base, in whose folder its autoencoder may be as well. No pickle. What a generator does is in `generator.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import registry
from pipeline.artifacts import Artifact, Store
from pipeline.data import tokens
from pipeline.data.latents import LatentSpace
from pipeline.errors import UserError
from pipeline.files import read_json, sha256_file, write_json
from pipeline.generate import adapters
from pipeline.generate.averages import check, weights_path
from pipeline.generate.generator import DEFAULTS, Generator, generator
from pipeline.networks import build_network, load_weights, save_weights

FORMAT = 1
WEIGHTS = ("autoencoder.safetensors", "denoiser.safetensors")
MODELS = ("config.json", "manifest.json")  # what a model's folder, and an artifact's, is known by
WEAKER = "weaker.safetensors"  # the network that autoguidance leads away from


def save_pretrained(
    folder: str | Path,
    *,
    name: str,
    image: Mapping[str, Any],
    options: Mapping[str, Any],
    autoencoder: Mapping[str, Any],
    autoencoder_weights: Mapping[str, Tensor],
    denoiser_weights: Mapping[str, Tensor],
    space: LatentSpace,
    defaults: Mapping[str, Any] | None = None,
    lineage: Mapping[str, Any] | None = None,
    weaker_weights: Mapping[str, Tensor] | None = None,
    adapter: Mapping[str, Any] | None = None,
    base: Path | None = None,
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """Write a model folder, whole in itself; returns its config.

    image: {size, channels}, and with buckets their shapes, {buckets: [[height, width], ...]}. options: as of
    `Generator`. autoencoder: options of models/autoencoders/. lineage: plain JSON values that name what the model was
    made of. weaker_weights: those of `guidance_weak` in `defaults`, for autoguidance. adapter: adapter_config.json,
    where the weights are an adapter's; base: what it goes with: its folder's autoencoder is not written again.
    tokenizer: its file, of a model of text. config.json comes last and holds the checksums of the weights.
    """
    folder = Path(folder)
    files = {WEIGHTS[0]: autoencoder_weights}
    if weaker_weights is not None:
        files[WEAKER] = weaker_weights
    if adapter is None:
        files[WEIGHTS[1]] = denoiser_weights
    else:
        adapters.save(folder, denoiser_weights, adapter)
    for file, weights in files.items():
        save_weights(folder / file, {key: value.detach() for key, value in weights.items()})
    digests = {file: sha256_file(folder / file) for file in (*files, *([adapters.FILE] if adapter else []))}
    if base and adapters.find(digests[WEIGHTS[0]], [str(base.parent / WEIGHTS[0])], folder, search=False)[0]:
        (folder / WEIGHTS[0]).unlink()
    if tokenizer is not None:
        tokens.keep(tokenizer, folder)
        digests[tokens.FILE] = sha256_file(folder / tokens.FILE)
    space.save(folder / "latents.json")
    config = {
        "format": FORMAT,
        "name": name,
        "image": dict(image),
        **options,
        "autoencoder": registry.resolve("autoencoders", autoencoder),
        "backbone": registry.resolve("backbones", options["backbone"]),
        "defaults": {**DEFAULTS, **(defaults or {})},
        "weights": digests,
        "lineage": dict(lineage or {}),
    }
    write_json(folder / "config.json", config)
    return config


def load_pretrained(
    source: str | Path,
    device: str | torch.device | None = None,
    root: str | Path = "runs",
    weights: str | None = None,
    base: str | None = None,
) -> Generator:
    """The generator of a model folder, a diffusion artifact's folder, a registered model (`models:/NAME@ALIAS`), or a
    run (its name, key or MLflow id).

    Default device: a GPU if there is one. `root`: where runs lie, and where `models:/` finds MLflow's data base, unless
    MLFLOW_TRACKING_URI says. `weights`: other ones of the denoiser than the model's own: a .safetensors file, or of an
    artifact also a name (`averages.weights_path`). `base`: of an adapter, where the weights are that were adapted, if
    neither where they were nor under `root`. Raises UserError where something is missing, damaged, or does not fit.
    """
    folder, where = place(source, root), torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if (folder / "manifest.json").exists() and not (folder / "config.json").exists():
        return from_artifact(Artifact.load(folder), where, weights or "ema", base)
    config = _read_config(folder)
    adapted = config.get("adapter")
    base_file = adapters.find_base(adapted, root, base) if adapted else None
    files = {file: folder / file for file in config["weights"]}
    if base_file and not files[WEIGHTS[0]].exists():
        found, _ = adapters.find(config["weights"][WEIGHTS[0]], [str(base_file.parent / WEIGHTS[0])], root)
        files[WEIGHTS[0]] = found or files[WEIGHTS[0]]
    for file, digest in config["weights"].items():
        if not files[file].is_file() or sha256_file(files[file]) != digest:
            raise UserError(f"{files[file]}: missing, or not the file that config.json names; fetch the model again")
    autoencoder = registry.build("autoencoders", config["autoencoder"], channels=config["image"]["channels"])
    load_weights(autoencoder, files[WEIGHTS[0]])
    network = build_network(config)
    own = adapters.FILE if adapted else WEIGHTS[1]
    if weights:
        if not weights.endswith(".safetensors"):
            raise UserError(f"weights {weights!r}: a model folder has one set only; give a .safetensors file")
        check(Path(weights), config["lineage"].get("diffusion", {}).get("content"), str(folder))
        config["weights"][own] = sha256_file(weights)
    adapters.load(network, Path(weights) if weights else folder / own, config, base_file)
    return generator(
        config,
        autoencoder.eval().to(where),
        network.eval().to(where),
        LatentSpace.load(folder / "latents.json"),
        where,
        config["defaults"],
        {key: config[key] for key in ("name", "weights", "lineage")},
        {str(config["defaults"]["guidance_weak"]): folder / WEAKER} if WEAKER in config["weights"] else {},
        base=base_file,
        tokenizer=tokens.of_model(autoencoder, folder),
    )


def place(source: str | Path, root: str | Path) -> Path:
    """The folder of what `load_pretrained` takes; UserError for a run or a registered model that is not there."""
    if str(source).startswith("models:"):
        from pipeline.tracking.tracker import fetch_model

        return fetch_model(str(source), root)
    if Path(source).name == str(source) and not any((Path(source) / name).exists() for name in MODELS):
        from pipeline.generate.averages import find

        try:
            return find(str(source), root).path  # also where a folder has the run's name: that of its images, often
        except UserError:
            if not Path(source).exists():
                raise
    return Path(source)


def from_artifact(
    diffusion: Artifact, device: torch.device, weights: str = "ema", base: str | None = None
) -> Generator:
    """The generator of a finished diffusion stage; its autoencoder and latents are looked for beside it."""
    if diffusion.stage != "diffusion":
        raise UserError(f"{diffusion.path}: an artifact of {diffusion.stage}; give one of diffusion, or a model folder")
    inputs = inputs_of(diffusion)
    return from_artifacts(inputs["autoencoder"], inputs["encode"], diffusion, device, weights=weights, base=base)


def inputs_of(diffusion: Artifact) -> dict[str, Artifact]:
    """Autoencoder and latents of a finished diffusion stage, beside it or where they were; UserError for others."""
    store, inputs = Store(diffusion.path.parents[2]), {}
    for name in ("autoencoder", "encode"):
        made_of = diffusion.inputs[name]
        beside = store.folder(name, made_of["fingerprint"])
        found = Artifact.load(beside if beside.exists() else made_of["path"])
        if found.content != made_of["content"]:
            raise UserError(
                f"{diffusion.path}: made with {name} {made_of['fingerprint']} (content {made_of['content'][:12]}), but "
                f"there is {found.name}; sample from the registered model instead"
            )
        inputs[name] = found
    return inputs


def from_artifacts(
    autoencoder: Artifact,
    latents: Artifact,
    diffusion: Artifact,
    device: torch.device,
    defaults: Mapping[str, Any] | None = None,
    weights: str = "ema",
    base: str | None = None,
) -> Generator:
    """The generator that three finished stages make, with the averaged weights or others (`averages.weights_path`)."""
    from pipeline.networks import load_model

    options = adapters.options_of(diffusion)
    network = build_network(options)
    chosen = weights_path(diffusion, weights)
    adapted = options.get("adapter")
    base_file = adapters.find_base(adapted, diffusion.path.parents[2], base) if adapted else None
    adapters.load(network, chosen, options, base_file)
    files = zip(WEIGHTS, (autoencoder.path / "ema.safetensors", chosen), strict=True)
    made_of = (autoencoder, latents, diffusion)
    about = {
        "name": diffusion.name,
        "weights": {file: sha256_file(path) for file, path in files},
        "lineage": {a.stage: {"fingerprint": a.fingerprint, "content": a.content} for a in made_of},
    }
    decoder = load_model(autoencoder.path).eval().to(device)
    space = LatentSpace.load(latents.path / "latents.json")
    own = averages(diffusion)
    more: dict[str, Any] = {"base": base_file, "tokenizer": tokens.of_model(decoder, autoencoder.path)}
    return generator(options, decoder, network.eval().to(device), space, device, defaults, about, own, **more)


def averages(diffusion: Artifact) -> dict[str, Path]:
    """The weights that a diffusion stage left besides its first average: "live", and half-lives in samples."""
    files = {path.stem.removeprefix("ema-"): path for path in diffusion.path.glob("ema-*.safetensors")}
    return {"live": diffusion.path / "live.safetensors", **files}


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = read_json(folder / "config.json")
        found = config["format"]
    except FileNotFoundError:
        expected = "give a model folder, a diffusion artifact's folder, or models:/NAME@ALIAS"
        raise UserError(f"{folder}: no model is there (config.json is missing); {expected}") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{folder / 'config.json'}: not the config of a model") from None
    if found != FORMAT:
        raise UserError(f"{folder / 'config.json'}: format {found}, this version reads {FORMAT}")
    return config
