"""Features of images for the Fréchet distance and for neighbours: which extractor, its digest, and how it was made.

An extractor maps uint8 images [n, H, W, C] to float64 features [n, d]. Three kinds: a classifier trained here on the
real images, a TorchScript file, and Inception (`inception.py`) from its weights file. Images without classes train no
classifier: then an untrained convolution network with a fixed seed stands in, and says so in its description.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.data.value_map import ValueMap, floats
from pipeline.errors import UserError
from pipeline.files import canonical_json, save_tensors, sha256_file

if TYPE_CHECKING:
    from pipeline.schema.stages import Extractor as ExtractorSection

Images = np.ndarray[Any, np.dtype[np.uint8]]  # [n, H, W, C]
Array = np.ndarray[Any, np.dtype[Any]]
CHUNK = 128  # images a forward pass
LARGEST = 64  # pixels; larger images are made smaller before the classifier
TRAIN_BATCH = 128
RATE = 3e-3  # the peak learning rate


@dataclass(frozen=True)
class Extractor:
    """Where features come from.

    kind: classifier | random | torchscript | inception. digest: SHA-256 of the weights: features of two digests are
    not comparable. description: one line for the report. facts: held-out accuracy and the like, plain JSON values.
    features: uint8 NCHW tensor -> [n, d] tensor. logits: the same -> [n, classes], or None where there are no classes.
    view: of images that are not 8 bits of gray or RGB, what `features` takes in their place (`seen`).
    """

    kind: str
    digest: str
    description: str
    features: Callable[[Tensor], Tensor] = field(repr=False)
    logits: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    facts: dict[str, Any] = field(default_factory=dict)
    module: nn.Module | None = field(default=None, repr=False)
    view: Callable[[Array], Array] | None = field(default=None, repr=False)

    def __call__(self, images: Images) -> Array:
        """Features float64 [n, d] of images [n, H, W, C], uint8 or as the data's `ValueMap` has them."""
        return _apply(self.features, images if self.view is None else self.view(images)).astype(np.float64)

    def classify(self, images: Images) -> Array:
        """The class int64 [n] that each image is put in. ValueError where the extractor knows no classes."""
        if self.logits is None:
            raise ValueError(f"the extractor {self.kind} knows no classes")
        result: Array = _apply(self.logits, images if self.view is None else self.view(images)).argmax(1)
        return result

    def save(self, path: Path) -> None:
        """Write the classifier's weights as safetensors, so that a figure can be computed again later."""
        if self.module is None:
            raise ValueError(f"the extractor {self.kind} lies in its own file")
        module: Any = self.module
        about: dict[str, Any] = {"kind": self.kind, "digest": self.digest, "description": self.description}
        about |= {"facts": self.facts, "layout": module.layout}
        save_tensors(path, module.state_dict(), {"ldm": canonical_json(about)})  # one entry: several come in any order


class Classifier(nn.Module):
    """A small convolution network: halve the image until it is 4 pixels wide, one layer of features, one of classes."""

    def __init__(self, channels: int, size: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.layout = {"channels": channels, "size": size, "classes": classes, "width": width}
        self.size = min(size, LARGEST)
        layers: list[nn.Module] = []
        side, before, after = self.size, channels, 16
        while side > 4:
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            side, before, after = (side + 1) // 2, after, min(after * 2, width)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side * side, width), nn.SiLU())
        self.head = nn.Linear(width, classes)

    def features(self, images: Tensor) -> Tensor:
        """[n, C, H, W], uint8 or float in [-1, 1] -> [n, width], what the last layer sees."""
        x = floats(images)
        if x.shape[-2:] != (self.size, self.size):
            x = functional.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        result: Tensor = self.body(x)
        return result

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [n, C, H, W] -> logits [n, classes]."""
        result: Tensor = self.head(self.features(images))
        return result


def train_classifier(
    images: Images, labels: Array, held_out: Images, held_out_labels: Array, *, classes: int, steps: int, seed: int
) -> Extractor:
    """Train a classifier on real images by a plain loop and measure it on held-out ones. Labels are int64 [n].

    AdamW, one-cycle rate, each batch shifted by up to a sixteenth of the image. Deterministic by `seed` on one machine
    with one number of threads: batches by Philox, weights from a generator of its own.
    """
    if len(np.unique(labels)) < 2:
        raise ValueError("a classifier needs images of at least two classes")
    model = _built(images, classes, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=max(steps, 10), pct_start=0.2)
    random = np.random.Generator(np.random.Philox(seed))
    for _ in range(steps):
        rows = random.integers(len(images), size=TRAIN_BATCH)
        batch = _shifted(_nchw(images[rows]), random)
        loss = functional.cross_entropy(model(batch), torch.from_numpy(labels[rows].astype(np.int64)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    right = float((_apply(model, held_out).argmax(1) == held_out_labels).mean())
    return Extractor(
        kind="classifier",
        digest=digest(model.state_dict()),
        description=f"classifier trained on {len(images)} real images, right on {right:.1%} of {len(held_out)} others",
        features=model.features,
        logits=model,
        facts={
            "held_out_accuracy": right,
            "held_out_images": len(held_out),
            "train_images": len(images),
            "steps": steps,
            "seed": seed,
        },
        module=model,
    )


def _shifted(images: Tensor, random: np.random.Generator) -> Tensor:
    """The batch [n, C, H, W] as floats in [-1, 1], moved by up to a sixteenth of its size, its edges repeated."""
    height, width = images.shape[-2:]
    margin = height // 16
    top, left = random.integers(2 * margin + 1, size=2)
    padded = functional.pad(floats(images), (margin, margin, margin, margin), mode="replicate")
    return padded[:, :, top : top + height, left : left + width]


def random_network(images: Images, reason: str, seed: int = 0) -> Extractor:
    """An untrained network of the classifier's layout, for where nothing can be trained. `reason`: why."""
    model = _built(images, 2, seed).eval()
    return Extractor(
        kind="random",
        digest=digest(model.state_dict()),
        description=f"untrained random convolutions (weak, for comparisons under the same digest only), since {reason}",
        features=model.features,
        facts={"seed": seed, "reason": reason},
        module=model,
    )


def load(path: Path) -> Extractor:
    """The extractor that `save` wrote. UserError if it is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads((file.metadata() or {})["ldm"])
        model = Classifier(**about["layout"])
        model.load_state_dict(state)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: not a whole extractor ({error}); remove it, and it is made again") from None
    if digest(state) != about["digest"]:
        raise UserError(f"{path}: its weights are not those of its digest; remove it, and it is made again")
    model.eval()
    logits = model if about["kind"] == "classifier" else None
    return Extractor(
        about["kind"], about["digest"], about["description"], model.features, logits, about["facts"], model
    )


def of_file(section: ExtractorSection) -> Extractor:
    """The extractor in the file that the config names."""
    if section.kind == "torchscript":
        return torchscript(str(section.path), section.digest)
    return inception(str(section.path), section.digest, section.rule)


def torchscript(path: str | Path, wanted: str | None = None) -> Extractor:
    """A TorchScript module: uint8 [n, 3, H, W] -> features [n, d]. Raises UserError if it does not do that.

    wanted: first digits of the SHA-256 that the file must have.
    """
    path, found = _existing(path, "torchscript"), verified(path, wanted, "evaluate.extractor.digest")
    module = script(path)

    def features(images: Tensor) -> Tensor:
        try:
            result = module(images.expand(-1, 3, -1, -1))
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise UserError(f"{path}: fails on uint8 images {list(images.shape)} ({last}); wrap it for these") from None
        if not isinstance(result, Tensor) or result.ndim != 2 or len(result) != len(images):
            raise UserError(f"{path}: gives no features [n, d] for uint8 images [n, 3, H, W]; wrap it so that it does")
        return result

    return Extractor("torchscript", found, f"TorchScript module {path.name}", features)


def script(path: Path) -> Any:
    """The module of a TorchScript file, on the CPU, in evaluation mode. UserError if it is none."""
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: not a TorchScript file ({first}); save one with torch.jit.save") from None


def inception(
    path: str | Path, wanted: str | None = None, rule: str = "clean-fid", digest_key: str = "evaluate.extractor.digest"
) -> Extractor:
    """Inception v3 as papers' FID uses it: 2048 features, published weights; rule: one of `inception.RULES`.

    wanted: first digits of the file's SHA-256, by default those of the published file; digest_key: where one gives
    them. On a GPU where there is one.
    """
    from pipeline.evaluation.metrics import inception as network

    path = _existing(path, "inception")
    found = verified(path, wanted or network.DIGEST, digest_key)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module, resize = network.load(path, rule).to(device), network.RULES[rule]
    return Extractor(
        kind="inception",
        digest=hashlib.sha256(f"{found} {resize}".encode()).hexdigest(),
        description=f"Inception v3, {network.FEATURES} features, {path.name}, {resize}",
        features=lambda images: module(images.to(device)),
        facts={"weights": found, "published": found.startswith(network.DIGEST)},
    )


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of weights, in order of name."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def seen(extractor: Extractor, values: ValueMap | None) -> Extractor:
    """The extractor for images whose values mean this: one that is trained here sees floats in [-1, 1], one of a file
    their 8-bit pictures."""
    if values is None:
        return extractor
    return replace(extractor, view=values.floats_last if extractor.module is not None else values.shown)


def _built(images: Images, classes: int, seed: int) -> Classifier:
    """A network with weights from a generator of its own; the global one is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(images.shape[-1], images.shape[1], classes)


def _nchw(images: Images) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))  # [n, H, W, C] -> [n, C, H, W]


@torch.no_grad()
def _apply(function: Callable[[Tensor], Tensor], images: Images) -> Array:
    parts = [
        function(_nchw(images[start : start + CHUNK])).float().cpu().numpy() for start in range(0, len(images), CHUNK)
    ]
    result: Array = np.concatenate(parts)
    return result


def _existing(path: str | Path, kind: str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"`evaluate.extractor.path`: {path} does not exist; give the weights of kind {kind}")
    return path


def verified(path: str | Path, wanted: str | None, key: str) -> str:
    """The SHA-256 of a file of weights; UserError if it does not begin with `wanted`, which `key` gives."""
    found = sha256_file(path)
    if wanted and not found.startswith(wanted.lower()):
        raise UserError(
            f"{path} has the SHA-256 {found}, which does not begin with {wanted.lower()}; give the file that is meant, "
            f"or its digest as `{key}`"
        )
    return found
