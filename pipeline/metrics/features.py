"""Features of images for the Fréchet distance and for neighbours: which extractor, its digest, and how it was made.

An extractor maps uint8 images [n, H, W, C] to float64 features [n, d]. Three kinds: a classifier trained here on the
real images, a TorchScript file, and Inception from its weights file. Images without classes train no classifier: then
an untrained convolution network with a fixed seed stands in, and says so in its description.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import UserError
from pipeline.files import atomic_path, sha256_file

Images = np.ndarray[Any, np.dtype[np.uint8]]  # [n, H, W, C]
Array = np.ndarray[Any, np.dtype[Any]]
CHUNK = 128  # images a forward pass
LARGEST = 64  # pixels; larger images are made smaller before the classifier
TRAIN_BATCH = 128


@dataclass(frozen=True)
class Extractor:
    """Where features come from.

    kind: classifier | random | torchscript | inception. digest: SHA-256 of the weights: features of two digests are
    not comparable. description: one line for the report. facts: held-out accuracy and the like, plain JSON values.
    features: uint8 NCHW tensor -> [n, d] tensor. logits: the same -> [n, classes], or None where there are no classes.
    """

    kind: str
    digest: str
    description: str
    features: Callable[[Tensor], Tensor] = field(repr=False)
    logits: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    facts: dict[str, Any] = field(default_factory=dict)
    module: nn.Module | None = field(default=None, repr=False)

    def __call__(self, images: Images) -> Array:
        """Features float64 [n, d] of uint8 images [n, H, W, C]."""
        return _apply(self.features, images).astype(np.float64)

    def classify(self, images: Images) -> Array:
        """The class int64 [n] that each image is put in. ValueError where the extractor knows no classes."""
        if self.logits is None:
            raise ValueError(f"the extractor {self.kind} knows no classes")
        result: Array = _apply(self.logits, images).argmax(1)
        return result

    def save(self, path: Path) -> None:
        """Write the classifier's weights as safetensors, so that a figure can be computed again later."""
        from safetensors.torch import save_file

        if self.module is None:
            raise ValueError(f"the extractor {self.kind} lies in its own file")
        with atomic_path(path) as temporary:
            save_file(self.module.state_dict(), str(temporary), metadata={"kind": self.kind, "digest": self.digest})


class Classifier(nn.Module):
    """A small convolution network: halve the image until it is 4 pixels wide, mean over space, linear to classes."""

    def __init__(self, channels: int, size: int, classes: int, width: int = 32, features: int = 64) -> None:
        super().__init__()
        self.size = min(size, LARGEST)
        layers: list[nn.Module] = []
        side, before, after = self.size, channels, width
        while side > 4:
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            side, before, after = (side + 1) // 2, after, min(after * 2, features)
        self.body = nn.Sequential(*layers, nn.Conv2d(before, features, 3, padding=1), nn.SiLU())
        self.head = nn.Linear(features, classes)

    def features(self, images: Tensor) -> Tensor:
        """uint8 [n, C, H, W] -> [n, features], what the last layer sees."""
        x = images.float() / 127.5 - 1
        if x.shape[-1] != self.size:
            x = functional.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        result: Tensor = self.body(x).mean((2, 3))  # [n, features, 4, 4] -> [n, features]
        return result

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [n, C, H, W] -> logits [n, classes]."""
        result: Tensor = self.head(self.features(images))
        return result


def train_classifier(
    images: Images, labels: Array, held_out: Images, held_out_labels: Array, *, classes: int, steps: int, seed: int
) -> Extractor:
    """Train a classifier on real images by a plain loop (AdamW, one-cycle rate) and measure it on held-out ones.

    Deterministic by `seed` on one machine with one number of threads: batches by Philox, weights by a local generator.
    """
    if len(set(labels.tolist())) < 2:
        raise ValueError("a classifier needs images of at least two classes")
    model = _built(images, classes, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=max(steps, 10), pct_start=0.2)
    random = np.random.Generator(np.random.Philox(seed))
    for _ in range(steps):
        rows = random.integers(len(images), size=TRAIN_BATCH)
        loss = functional.cross_entropy(model(_nchw(images[rows])), torch.from_numpy(labels[rows].astype(np.int64)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    extractor = _network("classifier", model.eval(), "classifier trained on the real training images", with_classes=True)
    correct = extractor.classify(held_out) == held_out_labels
    facts = {
        "held_out_accuracy": float(correct.mean()),
        "held_out_images": len(held_out),
        "train_images": len(images),
        "steps": steps,
        "seed": seed,
    }
    description = f"{extractor.description} ({len(images)} images, {facts['held_out_accuracy']:.1%} right on {len(held_out)} held out)"
    return Extractor(extractor.kind, extractor.digest, description, extractor.features, extractor.logits, facts, model)


def random_network(images: Images, reason: str, seed: int = 0) -> Extractor:
    """An untrained network of the classifier's layout: what is left where nothing can be trained. `reason`: why."""
    model = _built(images, 2, seed).eval()
    description = f"untrained random convolutions, since {reason}: a weak measure, good only for comparing like with like"
    return _network("random", model, description, with_classes=False, facts={"seed": seed, "reason": reason})


def torchscript(path: str | Path) -> Extractor:
    """A TorchScript module called with uint8 [n, 3, H, W] that gives features [n, d]. Raises UserError if it does not."""
    path = _existing(path, "torchscript")
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise UserError(f"{path}: not a TorchScript file ({str(error).splitlines()[0]}); save one with torch.jit.save") from None

    def features(images: Tensor) -> Tensor:
        try:
            result = module(images.expand(-1, 3, -1, -1))
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise UserError(f"{path}: failed on uint8 images {tuple(images.shape)} ({last}); it must take them") from None
        if not isinstance(result, Tensor) or result.ndim != 2 or len(result) != len(images):
            raise UserError(f"{path}: expected features [n, d] for images uint8 [n, 3, H, W]; wrap the module so that it gives them")
        return result

    return Extractor("torchscript", sha256_file(path), f"TorchScript module {path.name}", features)


def inception(path: str | Path) -> Extractor:
    """Inception v3 as FID uses it, 2048 features, from the weights file of torch-fidelity, through torchmetrics."""
    path = _existing(path, "inception")
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        module = NoTrainInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    except ModuleNotFoundError:
        raise UserError(
            "evaluate.extractor.kind is inception, which needs the package torch-fidelity: install it, or use classifier"
        ) from None
    return Extractor(
        "inception",
        sha256_file(path),
        f"Inception v3, 2048 features, {path.name}",
        lambda images: module(images.expand(-1, 3, -1, -1)),
    )


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of weights, in order of name."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _built(images: Images, classes: int, seed: int) -> Classifier:
    """A network with weights from a generator of its own; the global one is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(images.shape[-1], images.shape[1], classes)


def _network(
    kind: str, model: Classifier, description: str, with_classes: bool, facts: dict[str, Any] | None = None
) -> Extractor:
    logits = model if with_classes else None
    return Extractor(kind, digest(model.state_dict()), description, model.features, logits, facts or {}, model)


def _nchw(images: Images) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))  # [n, H, W, C] -> [n, C, H, W]


@torch.no_grad()
def _apply(function: Callable[[Tensor], Tensor], images: Images) -> Array:
    parts = [function(_nchw(images[start : start + CHUNK])).float().numpy() for start in range(0, len(images), CHUNK)]
    result: Array = np.concatenate(parts)
    return result


def _existing(path: str | Path, kind: str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"evaluate.extractor.path: {path} does not exist; give the weights of kind {kind}")
    return path
