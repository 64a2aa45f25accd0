"""A trained model as one folder, and images from it: save, load, sample, encode, decode, and files of samples.

    config.json              how to build it and what it was made of      latents.json   the latent space
    autoencoder.safetensors  denoiser.safetensors (averaged weights)

With autoguidance also weaker.safetensors. No pickle. Networks, samplers and guidance are in `models/`, how latents are
sampled in `sampling.py`, the latent space in `latents.py`, training in `stages/`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import registry
from models.diffusion import denoiser
from pipeline import sampling
from pipeline.artifacts import Artifact, Store
from pipeline.averages import check, weights_path
from pipeline.data.buckets import text
from pipeline.errors import UserError
from pipeline.files import atomic_path, atomic_write, read_json, sha256_file, write_json
from pipeline.latents import LatentSpace
from pipeline.schema.data import Shape

FORMAT = 1
WEIGHTS = ("autoencoder.safetensors", "denoiser.safetensors")
WEAKER = "weaker.safetensors"  # the network that autoguidance leads away from
DEFAULTS: dict[str, Any] = {**sampling.DEFAULTS, "batch_size": 32}

Images = np.ndarray[Any, np.dtype[np.uint8]]  # [n, H, W, C]


@dataclass(frozen=True)
class Generator:
    """A model that is ready to sample.

    options: as in config.json (latent, backbone, condition, classes, path, prediction). space: raw <-> normalised
    latents. defaults: what `sample` takes where it is not told. about: name, weights (SHA-256 by file), lineage.
    averages: files of other weights of the network, by name (`live`, or a half-life), for autoguidance.
    """

    options: dict[str, Any]
    autoencoder: Any = field(repr=False)
    network: nn.Module = field(repr=False)
    space: LatentSpace = field(repr=False)
    device: torch.device
    defaults: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS))
    about: dict[str, Any] = field(default_factory=dict)
    averages: dict[str, Path] = field(default_factory=dict)
    _loaded: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    @property
    def shapes(self) -> list[Shape]:
        """(height, width) of the images that can be asked for, in pixels, the usual one first."""
        latent, factor = self.options["latent"], self.autoencoder.factor
        known = latent.get("buckets", [[latent["size"], latent["size"]]])
        return [(height * factor, width * factor) for height, width in known]

    @property
    def classes(self) -> list[str]:
        """Names of the classes that can be asked for; empty for a model without class condition."""
        return list(self.options["classes"]) if self.options["condition"]["kind"] == "class" else []

    def sample(
        self,
        classes: Sequence[int | str] | None = None,
        n: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        batch_size: int | None = None,
        shape: Sequence[int] | None = None,
        **how: Any,
    ) -> Images:
        """Images uint8 [n, H, W, C]. Image i has class i modulo the number of `classes` (default: all, in turn).

        shape: (height, width) in pixels, one of `shapes`; default: the first of them. Image i of a seed is a function
        of (seed, i, its class, the shape) alone: noise is drawn by image, and every batch is
        filled up to `batch_size`, so that `n` and the other classes change no bit. Another batch size is another shape
        of the same computation: equal up to rounding. `how`: grid, shift, guidance_kind, guidance_weak,
        guidance_interval, guidance_rescale, as in the config's `evaluate`. Raises UserError for values that the model
        does not know.
        """
        request = self.request(classes, n, seed, steps, sampler, guidance, batch_size, shape, **how)
        return self.images(request)

    def images(self, request: dict[str, Any], first: int = 0) -> Images:
        """The images of a `request`, from number `first` on, uint8 [n, H, W, C]; the classes begin with that one's."""
        return np.concatenate(list(self._batches(request, first)))[: request["n"]]

    def request(
        self,
        classes: Sequence[int | str] | None = None,
        n: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        batch_size: int | None = None,
        shape: Sequence[int] | None = None,
        **how: Any,
    ) -> dict[str, Any]:
        """The arguments of `sample`, checked, with the defaults put in, as plain JSON values."""
        labels = self._labels(classes)
        chosen = {"sampler": sampler, "steps": steps, "guidance": guidance, "batch_size": batch_size, **how}
        filled = {**self.defaults, **{key: value for key, value in chosen.items() if value is not None}}
        if filled["grid"] != "shifted":  # the only grid that has one
            if chosen.get("shift") is not None:
                raise UserError(f"shift: {chosen['shift']} given, but the grid is {filled['grid']}; give grid shifted")
            filled["shift"] = None
        count = n if n is not None else len(labels) if classes is not None else 16
        request: dict[str, Any] = {"n": count, "seed": seed, "classes": labels}
        if shape is not None:
            if tuple(shape) not in self.shapes:
                known = ", ".join(map(text, self.shapes))
                raise UserError(f"size: {'x'.join(map(str, shape))} (height x width) is none of this model's: {known}")
            request["shape"] = list(shape)
        for key, value in {**request, **filled}.items():
            if key in ("n", "steps", "batch_size") and (not isinstance(value, int) or value < 1):
                raise UserError(f"{key}: {value} given, expected a whole number of at least 1")
        if not isinstance(seed, int) or seed < 0:
            raise UserError(f"seed: {seed} given, expected a whole number of at least 0")
        sampling.check({key: value for key, value in filled.items() if key != "batch_size"})
        if filled["guidance"] != 1 and filled["guidance_kind"] == "autoguidance":
            self._weak_file(str(filled["guidance_weak"]))
        elif filled["guidance"] != 1 and not (self.classes and self.options["condition"].get("drop", 0) > 0):
            raise UserError(
                f"guidance: {filled['guidance']} needs a model trained with `condition.drop` above 0; give 1"
            )
        return {**request, **filled}

    def encode(self, images: Images, batch_size: int = 32) -> Tensor:
        """Normalised latents [n, C, h, w] (the posterior's mean, no noise) of uint8 images [n, H, W, C]."""
        parts = []
        for start in range(0, len(images), batch_size):
            pixels = np.ascontiguousarray(images[start : start + batch_size].transpose(0, 3, 1, 2))  # [b, C, H, W]
            x = torch.from_numpy(pixels).to(self.device).float() / 127.5 - 1  # [0, 255] -> [-1, 1]
            with torch.no_grad():
                mean = self.autoencoder.encode(x).float().chunk(2, dim=1)[0]  # [b, 2C, h, w] -> [b, C, h, w]
            parts.append(self.space.normalise(mean).cpu())
        return torch.cat(parts)

    def decode(self, latents: Tensor, batch_size: int = 32) -> Images:
        """Images uint8 [n, H, W, C] of normalised latents [n, C, h, w]."""
        parts = []
        for start in range(0, len(latents), batch_size):
            part = latents[start : start + batch_size].to(self.device)
            with torch.no_grad():
                x = self.autoencoder.decode(self.space.restore(part)).float()  # [b, C, H, W] in about [-1, 1]
            pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte()
            parts.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(parts)

    def _batches(self, request: dict[str, Any], first: int) -> Iterator[Images]:
        labels, size, factor = request["classes"], request["batch_size"], self.autoencoder.factor
        height, width = request.get("shape") or self.shapes[0]
        for start in range(0, request["n"], size):
            rows = range(start, start + size)  # the last batch goes beyond n, and is cut by the caller
            chosen = torch.tensor([labels[i % len(labels)] for i in rows], device=self.device) if labels else None
            z = sampling.latents(
                self.network,
                lambda: self._weak(str(request["guidance_weak"])),
                self.options,
                request,
                range(first + rows.start, first + rows.stop),
                chosen,
                self.device,
                (height // factor, width // factor),
            )
            yield self.decode(z, size)

    def _weak_file(self, name: str) -> Path:
        if name not in self.averages:
            kept = ", ".join(sorted(self.averages)) or "none"
            raise UserError(f"guidance_weak: weights {name!r} are not kept with this model; kept: {kept}")
        return self.averages[name]

    def _weak(self, name: str) -> nn.Module:
        """The network with other weights of the same run; read once."""
        if name not in self._loaded:
            with torch.random.fork_rng(devices=[]):  # its first weights are of no use
                network = build_network(self.options)
            load_weights(network, self._weak_file(name))
            self._loaded[name] = network.eval().to(self.device)
        return self._loaded[name]

    def _labels(self, classes: Sequence[int | str] | None) -> list[int]:
        names = self.classes
        if classes is None:
            return list(range(len(names)))
        if not names and len(classes) == 0:  # a request of this model that comes back
            return []
        if not names:
            raise UserError("classes: this model has no class condition; leave them out")
        return [class_number(value, names) for value in classes] or list(range(len(names)))


def class_number(value: int | str, names: Sequence[str]) -> int:
    """A class by name, or by number. UserError where there is none such."""
    if isinstance(value, str) and value in names:
        return list(names).index(value)
    if str(value).isdecimal() and int(value) < len(names):
        return int(value)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    raise UserError(f"class {value!r} is neither one of the names ({shown}) nor a number from 0 to {len(names) - 1}")


def build_network(options: Mapping[str, Any], activation_checkpointing: bool = False) -> nn.Module:
    """The denoising network that `options` describe, with fresh weights from torch's global generator."""
    return denoiser.build_network(
        options["backbone"],
        options["condition"]["kind"],
        options["latent"]["channels"],
        options["latent"]["size"],
        len(options["classes"]),
        activation_checkpointing,
    )


def generator(
    options: dict[str, Any],
    autoencoder: nn.Module,
    network: nn.Module,
    space: LatentSpace,
    device: torch.device,
    defaults: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    averages: Mapping[str, Path] | None = None,
) -> Generator:
    """A generator of networks at hand (in training, too); nothing is copied."""
    filled = {**DEFAULTS, **(defaults or {})}
    return Generator(options, autoencoder, network, space, device, filled, dict(about or {}), dict(averages or {}))


# ---- the folder ------------------------------------------------------------------------------------------------------


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
) -> dict[str, Any]:
    """Write a model folder, whole in itself; returns its config.

    image: {size, channels}, and with buckets their shapes, {buckets: [[height, width], ...]}. options: as of
    `Generator`. autoencoder: options of models/autoencoders/. lineage: plain JSON values that name what the model was
    made of. weaker_weights: those of `guidance_weak` in `defaults`, for autoguidance. config.json comes last and holds
    the checksums of the weights.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    files = dict(zip(WEIGHTS, (autoencoder_weights, denoiser_weights), strict=True))
    if weaker_weights is not None:
        files[WEAKER] = weaker_weights
    for file, weights in files.items():
        with atomic_path(folder / file) as temporary:
            save_file({key: value.detach().contiguous().cpu() for key, value in weights.items()}, str(temporary))
    space.save(folder / "latents.json")
    config = {
        "format": FORMAT,
        "name": name,
        "image": dict(image),
        **options,
        "autoencoder": registry.resolve("autoencoders", autoencoder),
        "backbone": registry.resolve("backbones", options["backbone"]),
        "defaults": {**DEFAULTS, **(defaults or {})},
        "weights": {file: sha256_file(folder / file) for file in files},
        "lineage": dict(lineage or {}),
    }
    write_json(folder / "config.json", config)
    return config


def load_pretrained(
    source: str | Path,
    device: str | torch.device | None = None,
    root: str | Path = "runs",
    weights: str | None = None,
) -> Generator:
    """The generator of a model folder, a diffusion artifact's folder, a registered model (`models:/NAME@ALIAS`), or a
    run (its name, key or MLflow id).

    Default device: a GPU if there is one. `root`: where runs lie, and where `models:/` finds MLflow's data base, unless
    MLFLOW_TRACKING_URI says. `weights`: other ones of the denoiser than the model's own: a .safetensors file, or of an
    artifact also a name (`averages.weights_path`). Raises UserError where something is missing, damaged, or does not
    fit.
    """
    if str(source).startswith("models:"):
        from pipeline.tracking import fetch_model

        source = fetch_model(str(source), root)
    elif Path(source).name == str(source) and not Path(source).exists():
        from pipeline.averages import find

        source = find(str(source), root).path
    folder, where = Path(source), torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if (folder / "manifest.json").exists() and not (folder / "config.json").exists():
        return from_artifact(Artifact.load(folder), where, weights or "ema")
    config = _read_config(folder)
    for file, digest in config["weights"].items():
        if not (folder / file).is_file() or sha256_file(folder / file) != digest:
            raise UserError(f"{folder / file}: missing, or not the file that config.json names; fetch the model again")
    autoencoder = registry.build("autoencoders", config["autoencoder"], channels=config["image"]["channels"])
    network = build_network(config)
    for module, file in zip((autoencoder, network), WEIGHTS, strict=True):
        load_weights(module, folder / file)
    if weights:
        if not weights.endswith(".safetensors"):
            raise UserError(f"weights {weights!r}: a model folder has one set only; give a .safetensors file")
        check(Path(weights), config["lineage"].get("diffusion", {}).get("content"), str(folder))
        load_weights(network, Path(weights))
        config["weights"][WEIGHTS[1]] = sha256_file(weights)
    return generator(
        config,
        autoencoder.eval().to(where),
        network.eval().to(where),
        LatentSpace.load(folder / "latents.json"),
        where,
        config["defaults"],
        {key: config[key] for key in ("name", "weights", "lineage")},
        {str(config["defaults"]["guidance_weak"]): folder / WEAKER} if WEAKER in config["weights"] else {},
    )


def from_artifact(diffusion: Artifact, device: torch.device, weights: str = "ema") -> Generator:
    """The generator of a finished diffusion stage; its autoencoder and latents are looked for beside it."""
    if diffusion.stage != "diffusion":
        raise UserError(f"{diffusion.path}: an artifact of {diffusion.stage}; give one of diffusion, or a model folder")
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
    return from_artifacts(inputs["autoencoder"], inputs["encode"], diffusion, device, weights=weights)


def from_artifacts(
    autoencoder: Artifact,
    latents: Artifact,
    diffusion: Artifact,
    device: torch.device,
    defaults: Mapping[str, Any] | None = None,
    weights: str = "ema",
) -> Generator:
    """The generator that three finished stages make, with the averaged weights or others (`averages.weights_path`)."""
    from pipeline.stages.autoencoder import load_model

    options = read_json(diffusion.path / "model.json")
    network = build_network(options)
    chosen = weights_path(diffusion, weights)
    load_weights(network, chosen)
    files = zip(WEIGHTS, (autoencoder.path / "ema.safetensors", chosen), strict=True)
    made_of = (autoencoder, latents, diffusion)
    about = {
        "name": diffusion.name,
        "weights": {file: sha256_file(path) for file, path in files},
        "lineage": {a.stage: {"fingerprint": a.fingerprint, "content": a.content} for a in made_of},
    }
    decoder = load_model(autoencoder.path).eval().to(device)
    space = LatentSpace.load(latents.path / "latents.json")
    return generator(options, decoder, network.eval().to(device), space, device, defaults, about, averages(diffusion))


def averages(diffusion: Artifact) -> dict[str, Path]:
    """The weights that a diffusion stage left besides its first average: "live", and half-lives in samples."""
    files = {path.stem.removeprefix("ema-"): path for path in diffusion.path.glob("ema-*.safetensors")}
    return {"live": diffusion.path / "live.safetensors", **files}


def load_weights(module: nn.Module, path: Path) -> None:
    """Put a safetensors file into a module. Raises UserError if it is damaged or of another model."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(str(path)))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; no whole model is there") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch the model again") from None
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise UserError(f"{path}: weights of another model ({lines[min(1, len(lines) - 1)].strip()})") from None


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


# ---- files of samples ------------------------------------------------------------------------------------------------


def grid(images: Images, columns: int | None = None) -> Images:
    """Images [n, H, W, C] side by side, row by row: uint8 [rows * H, columns * W, 3]. Free places are white.

    `columns` is by default the smallest square's side.
    """
    n, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * columns, height, width, 3), 255, np.uint8)
    sheet[:n] = images  # gray is repeated into RGB
    cells = sheet.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)  # [r, H, c, W, 3]
    return cells.reshape(rows * height, columns * width, 3)


def write_samples(folder: str | Path, images: Images, info: Mapping[str, Any]) -> Path:
    """Write 000000.png ..., grid.png, and last samples.json (info, and each file's class and checksum).

    `info` is `sample_info(...)`. A folder that holds samples already is a UserError: two sets would mix.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; give a new folder for the samples")
    labels, entries = info["request"]["classes"], []
    for i, image in enumerate(images):
        file = folder / f"{i:06d}.png"
        _write_png(file, image)
        chosen = labels[i % len(labels)] if labels else None
        entries.append({"file": file.name, "index": i, "class": chosen, "sha256": sha256_file(file)})
    _write_png(folder / "grid.png", grid(images))
    write_json(folder / "samples.json", {**info, "images": entries})
    return folder


def _write_png(path: Path, image: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """image: uint8 [H, W, 1] or [H, W, 3]."""
    from PIL import Image

    from pipeline.data.transforms import to_png

    atomic_write(path, to_png(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)))


def sample_info(of: Generator, request: Mapping[str, Any]) -> dict[str, Any]:
    """What made a set of samples: the model with its weights' checksums, the request, the versions."""
    return {
        "model": of.about,
        "request": dict(request),
        "class_names": of.classes,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "device": str(of.device),
    }
