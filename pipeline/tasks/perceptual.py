"""Which perceptual distance the config asks for: where its weights come from, their digest, what to say about it.

The distance itself is in models/perceptual.py. Nothing is downloaded: LPIPS needs the network's weights as a file. A
classifier of the data's own classes, or untrained convolutions, stand in where there is none, and are called so.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import atomic_write, sha256_file
from pipeline.schema.section import result_fields
from pipeline.schema.stages import Perceptual

if TYPE_CHECKING:
    import torch

    from models.perceptual import FeatureDistance

SEED = 0  # of random features, and of the classifier's training
KEY = "autoencoder.loss.perceptual"


def recipe(options: Perceptual) -> dict[str, Any]:
    """What decides on the distance: a file counts by content, not by place."""
    kept = result_fields(options)
    for key in ("path", "heads"):
        if kept[key]:
            kept[key] = sha256_file(_file(options, key))
    return kept


def load(options: Perceptual, size: int, channels: int) -> tuple[FeatureDistance, dict[str, Any]]:
    """The distance, and what it is: kind, digest of its weights (SHA-256), one line in words.

    size, channels: of the images. UserError where a file is not what the config says.
    """
    from models import perceptual
    from pipeline.evaluation.metrics.features import digest

    if options.kind == "random":
        distance = perceptual.random_features(channels, size, SEED)
        told = "untrained random convolutions (weak: no perceptual distance that papers report)"
    elif options.kind == "classifier":
        distance = _classifier(_file(options, "path"), size, channels)
        told = "features of a classifier of the data's own classes (not LPIPS)"
    elif options.kind == "lpips":
        try:
            distance = perceptual.lpips(
                options.network, _weights(_file(options, "path")), _weights(_heads(options.network, options))
            )
        except ValueError as error:
            raise UserError(f"`{KEY}`: {error}") from None
        told = f"LPIPS 0.1, {options.network}"
    else:
        raise ValueError("perceptual kind none has no distance")
    found = digest(distance.state_dict())
    return distance, {"kind": options.kind, "digest": found, "description": f"{told}, weights {found[:12]}"}


def _file(options: Perceptual, key: str) -> Path:
    path = Path(str(getattr(options, key)))
    if not path.is_file():
        raise UserError(f"`{KEY}.{key}`: {path} does not exist; give a .pth or .safetensors file of weights")
    return path


def _heads(network: str, options: Perceptual) -> Path:
    """LPIPS's linear heads: a file of the user's, or the published ones, which torchmetrics ships (a few KB)."""
    if options.heads:
        return _file(options, "heads")
    found = find_spec("torchmetrics")  # not imported: that takes seconds
    library = next(iter((found and found.submodule_search_locations) or []))
    return Path(library) / "functional" / "image" / "lpips_models" / f"{network}.pth"


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of a pickle that may hold nothing but tensors."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: not a file of weights ({first}); save a state dict with torch.save") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a state dict, names -> tensors")
    return state


def _classifier(path: Path, size: int, channels: int) -> FeatureDistance:
    """The convolutions of a classifier (metrics/features.py), one depth a halving."""
    from torch import nn

    from models.perceptual import FeatureDistance, Resized
    from pipeline.evaluation.metrics.features import LARGEST, Classifier

    state = _weights(path)
    if "head.weight" not in state:
        raise UserError(f"`{KEY}.path`: {path} is no classifier; give the extractor.safetensors of an evaluation")
    network = Classifier(channels, size, len(state["head.weight"]))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"`{KEY}.path`: {path} is of other images than {channels} x {size}^2 ({last})") from None
    layers = [layer for layer in network.body if isinstance(layer, (nn.Conv2d, nn.GroupNorm, nn.SiLU))]
    count = sum(isinstance(layer, nn.Conv2d) for layer in layers)
    stages = [nn.Sequential(*layers[3 * i : 3 * i + 3]) for i in range(count)]  # convolution, norm, activation
    if size > LARGEST:
        stages[0].insert(0, Resized(LARGEST))
    return FeatureDistance(stages)


def train_classifier(arguments: dict[str, Any]) -> str:
    """On a worker: save the classifier of the training split to `arguments["path"]`; says how good it is.

    The first one that is made is kept in the pool (extractors.py) and taken from then on: a longer run that goes on
    from a shorter one's checkpoint goes on with the same loss, though another machine would train other bits.
    """
    import torch

    from pipeline.artifacts import Artifact
    from pipeline.data.index import Index
    from pipeline.data.split import load_split
    from pipeline.evaluation import extractors
    from pipeline.evaluation.metrics import features

    torch.set_num_threads(arguments["threads"])
    config, data = Config.model_validate(arguments["config"]), Artifact.load(arguments["data"])
    kept = extractors.pool_file(config, data, ["perceptual", config.autoencoder.loss.perceptual.steps, config.run.seed])
    if kept.exists():
        return _copy(kept, Path(arguments["path"]))
    train, labels = load_split(data.path, "train", config, config.run.seed)
    held_out, held_out_labels = load_split(data.path, "val", config, config.run.seed)
    known, known_held_out = labels >= 0, held_out_labels >= 0
    index = Index.open(data.path, "train", config.data.cache)
    if reason := extractors.why_no_classifier(labels, held_out_labels, len(index.classes)):
        raise UserError(f"`{KEY}.kind`: no classifier can be trained, since {reason}; use kind random")
    extractor = features.train_classifier(
        train[known], labels[known], held_out[known_held_out], held_out_labels[known_held_out],
        classes=max(len(index.classes), int(labels.max()) + 1), steps=config.autoencoder.loss.perceptual.steps,
        seed=SEED,
    )  # fmt: skip
    extractors.keep(extractor, kept, features.load)
    return _copy(kept, Path(arguments["path"]))


def _copy(kept: Path, path: Path) -> str:
    """A classifier of the pool, whole, byte for byte, to `path`; says how good it is."""
    from pipeline.evaluation.metrics import features

    said = features.load(kept).description
    atomic_write(path, kept.read_bytes())
    return said
