"""Judges of samples: trained on real training images only, kept in the pool of extractors, so that each trains once.

    <run.root>/extractors/<key>.safetensors     key: the images, what was said of them, and the options

Two: which value of a column is on an image, and which caption belongs to it. The networks are `models/judges.py`, what
is made of their answers is `agreement.py`. They train on the CPU: the same bits on one machine with one number of
threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.judges import Judge, TwoTowers, contrastive
from pipeline.data.captions import cut, symbols
from pipeline.data.pictures import Images
from pipeline.data.text_encoders import Frozen
from pipeline.errors import UserError
from pipeline.evaluation.extractors import keep
from pipeline.evaluation.metrics.features import digest
from pipeline.files import canonical_json, save_tensors
from pipeline.files import digest as digest_of

Array = np.ndarray[Any, np.dtype[Any]]
FORMAT = 1  # raised when a judge of the same options is another one
RATES = {"judge": 3e-3, "towers": 1e-3}  # the peak learning rate
DECAYS = {"judge": 1e-2, "towers": 0.2}  # of weights
BATCH, PAIRS = 64, 128  # images of a step: of a judge, of two towers
CHUNK = 200  # images of a forward pass
LOOKS = 10  # at the images that are kept back; the weights that are best there are taken
PATIENCE = 3  # looks in a row that are a tenth worse than the best: no more is learned that holds for other images
BACK, MOST_BACK = 10, 1000  # one image in ten is kept back, at most a thousand
TOKENS = 128  # of a caption, BEGIN among them; the rest is not read
NETWORKS: dict[str, type[nn.Module]] = {"judge": Judge, "towers": TwoTowers}


@dataclass(frozen=True)
class Trained:
    """A judge that is trained. about: kind, layout (arguments of its network), columns, facts; plain JSON values."""

    network: Any = field(repr=False)
    about: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the weights: figures of two digests are not comparable."""
        return str(self.about["digest"])

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        save_tensors(path, self.network.state_dict(), {"ldm": canonical_json(self.about)})


def load(path: Path) -> Trained:
    """What `save` wrote. UserError if it is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads((file.metadata() or {})["ldm"])
        network = NETWORKS[about["kind"]](**about["layout"])
        network.load_state_dict(state)
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a whole judge ({error}); remove it, and it is made again") from None
    if digest(state) != about["digest"]:
        raise UserError(f"{path}: its weights are not those of its digest; remove it, and it is made again")
    return Trained(network.eval(), about)


def of_columns(
    images: Images, told: Mapping[str, Array], columns: Mapping[str, Any], pool: Path, steps: int, seed: int, flip: bool
) -> Trained:
    """The judge of columns: from the pool, or trained and put there.

    images: uint8 [n, H, W, C], real ones of training; told: of each column the rows of `data/condition_values.py`;
    columns: {kind, values or range} of each. flip: whether a mirrored image is as good as it was.
    """
    columns = dict(sorted(columns.items()))  # the same judge in whatever order they are asked for
    outputs = {name: len(own["values"]) if "values" in own else 1 for name, own in columns.items()}
    layout = {
        "channels": images.shape[3],
        "size": images.shape[1],
        "columns": outputs,
        "numbers": sorted(name for name, own in columns.items() if own["kind"] == "continuous"),
    }
    said = [dict(columns), {name: hashlib.sha256(rows.tobytes()).hexdigest() for name, rows in told.items()}]
    tables = lifts(columns, told)

    def make(network: Any, rows: Array, random: Any) -> Tensor:
        answers = network(_batch(images[rows], random, flip))
        for (name, other), table in tables.items():
            answers[name] = answers[name] + torch.from_numpy(table[told[other][rows]])
        return torch.stack([_loss(own, answers[name], told[name][rows]) for name, own in columns.items()]).sum()

    return _trained("judge", layout, images, said, pool, steps, seed, flip, BATCH, make, {"columns": dict(columns)})


def of_captions(
    images: Images,
    captions: Sequence[str],
    pool: Path,
    steps: int,
    seed: int,
    flip: bool,
    encoder: Mapping[str, Any] | None = None,
) -> Trained:
    """The two towers of pairs: from the pool, or trained and put there.

    captions: of each image one. encoder: a frozen one that reads them (`data/text_encoders.py`, as identified). It has
    read more than any data set of pairs; None: a small transformer over bytes is trained with the image tower.
    """
    layout: dict[str, Any] = {"channels": images.shape[3], "size": images.shape[1], "tokens": TOKENS}
    layout |= {"embedded": encoder["width"]} if encoder else {}
    different, own = np.unique(np.array(captions, object), return_inverse=True)
    said = [list(captions), *([encoder["digest"]] if encoder else [])]

    @cache
    def texts() -> Tensor:  # those in the pool need them not
        return read(different.tolist(), encoder)

    def make(network: Any, rows: Array, random: Any) -> Tensor:
        scores = network.scores(
            network.images(_batch(images[rows], random, flip)), network.captions(texts()[own[rows]])
        )
        return contrastive(scores, torch.from_numpy(own[rows][:, None] == own[rows]))

    more = {"encoder": dict(encoder)} if encoder else {}
    return _trained("towers", layout, images, said, pool, steps, seed, flip, PAIRS, make, more)


def lifts(columns: Mapping[str, Any], told: Mapping[str, Array]) -> dict[tuple[str, str], Array]:
    """Of each two categorical columns float32 [values of the other and none, values]: by how much the other's value
    raises the log share of a value in these rows.

    Added to the evidence in training only (logit adjustment: Menon et al. 2021, with the other columns' values in the
    place of the class's prior; columns taken as independent given the value). What the other columns' values say is
    then known already, so that a hat is not learned as a sign that the mouth does not smile: a pair of values that
    training never had is judged as well as others.
    """
    names = [name for name, own in columns.items() if own["kind"] == "categorical"]
    found = {}
    for name in names:
        count = len(columns[name]["values"])
        for other in (one for one in names if one != name):
            both = (told[name] < count) & (told[other] < len(columns[other]["values"]))
            pairs = np.zeros((len(columns[other]["values"]) + 1, count))
            np.add.at(pairs, (told[other][both], told[name][both]), 1)
            share = (pairs.sum(0) + 1) / (pairs.sum() + count)
            table = np.log((pairs + share) / (pairs.sum(1, keepdims=True) + 1) / share)  # one image's worth of prior
            found[name, other] = table.astype(np.float32)  # its last row is of no images: 0
    return found


def read(captions: Sequence[str], encoder: Mapping[str, Any] | None) -> Tensor:
    """Captions as the text tower takes them: symbols int64 [n, S <= TOKENS], or a frozen encoder's float32 [n, D]."""
    if encoder:
        found, _ = Frozen(encoder, TOKENS)(captions)
        return torch.from_numpy(np.stack([each.pooled for each in found]).astype(np.float32))
    texts = np.stack([symbols(np.frombuffer(cut(text, TOKENS - 1), np.uint8), TOKENS) for text in captions])
    return torch.from_numpy(texts[:, : int((texts != 0).sum(1).max())])


@torch.no_grad()
def answers(judge: Trained, images: Images) -> dict[str, Array]:
    """Of each column float32 [n, outputs] for uint8 images [n, H, W, C]."""
    parts = [judge.network(_batch(images[i : i + CHUNK])) for i in range(0, len(images), CHUNK)]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


@torch.no_grad()
def scores(towers: Trained, images: Images, captions: Sequence[str]) -> Array:
    """float32 [n, m]: how well each caption goes with each image."""
    network, texts = towers.network, read(captions, towers.about.get("encoder"))
    seen = [network.images(_batch(images[i : i + CHUNK])) for i in range(0, len(images), CHUNK)]
    said = [network.captions(texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK)]
    found: Array = network.scores(torch.cat(seen), torch.cat(said)).numpy()
    return found


# ---- training --------------------------------------------------------------------------------------------------------

Loss = Callable[[Any, Array, Any], Tensor]  # network, rows, random numbers (None: images as they are) -> a number


def _trained(
    kind: str,
    layout: dict[str, Any],
    images: Images,
    said: list[Any],
    pool: Path,
    steps: int,
    seed: int,
    flip: bool,
    batch: int,
    loss: Loss,
    more: dict[str, Any],
) -> Trained:
    """From the pool, or by a plain loop: AdamW, one-cycle rate; of ten looks at images that are kept back the weights
    with the smallest loss."""
    pixels = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
    key = digest_of([FORMAT, kind, layout, list(images.shape), pixels, said, steps, seed, flip])
    path = pool / f"{key[:16]}.safetensors"
    if path.exists():
        return load(path)
    random = np.random.Generator(np.random.Philox(seed))
    order = random.permutation(len(images))
    back = min(MOST_BACK, max(1, len(images) // BACK))
    kept_back, train = np.sort(order[:back]), order[back:]
    best, weights, at, worse = float("inf"), {}, 0, 0
    with torch.random.fork_rng(devices=[]):  # first weights, dropout
        torch.manual_seed(seed)
        network: Any = NETWORKS[kind](**layout)
        network = network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATES[kind], weight_decay=DECAYS[kind])
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATES[kind], total_steps=max(steps, 10), pct_start=0.2)
        for step in range(1, steps + 1):
            value = loss(network, train[random.integers(len(train), size=batch)], random)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            rate.step()
            if step % max(1, steps // LOOKS) == 0 or step == steps:
                measured = _looked(network, loss, kept_back)
                print(f"{kind}, step {step} of {steps}: loss {measured:.3g} of images kept back", flush=True)
                worse = worse + 1 if measured > 1.1 * best else 0
                if worse == PATIENCE:
                    break
                if measured < best:
                    best, at = measured, step
                    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if not weights:
        raise UserError(f"the {kind} did not learn: its loss is not finite; look at the training images")
    state = {name: tensor.contiguous() for name, tensor in weights.items()}
    network.load_state_dict(state)
    facts = {"train_images": len(train), "kept_back": back, "steps": steps, "taken_at": at, "seed": seed}
    about = {"kind": kind, "layout": layout, "digest": digest(state), "facts": facts, **more}
    return keep(Trained(network.to(memory_format=torch.contiguous_format).eval(), about), path, load)


@torch.no_grad()
def _looked(network: nn.Module, loss: Loss, rows: Array) -> float:
    """The mean loss of images as they are."""
    network.eval()
    parts = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    value = sum(float(loss(network, part, None)) * len(part) for part in parts) / len(rows)
    network.train()
    return value


def _loss(options: Mapping[str, Any], answer: Tensor, rows: Array) -> Tensor:
    """The mean loss of a column over images that have a value; 0 where none has. A sum over labels."""
    told = torch.from_numpy(np.ascontiguousarray(rows))
    if options["kind"] == "categorical":
        known = told < answer.shape[1]
        each = functional.cross_entropy(answer, told.clamp(max=answer.shape[1] - 1), reduction="none")
    elif options["kind"] == "multi_label":
        known = told[:, 0] >= 0
        each = functional.binary_cross_entropy_with_logits(answer, told.clamp(min=0), reduction="none").sum(1)
    else:
        known, each = told >= 0, (answer[:, 0] - told).square()
    return (each * known).sum() / known.sum().clamp(min=1)


def _batch(images: Images, random: np.random.Generator | None = None, flip: bool = False) -> Tensor:
    """float32 [n, C, H, W] in [-1, 1] of uint8 [n, H, W, C]; with `random` numbers disturbed."""
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 127.5 - 1
    if random is not None:
        x = disturbed(x, random, flip)
    return x.contiguous(memory_format=torch.channels_last)


def disturbed(x: Tensor, random: np.random.Generator, flip: bool) -> Tensor:
    """Images [n, C, H, W] moved by up to 6%, scaled by up to 10%; half of them blurred, half with noise.

    What a decoder does to an image must not change the answer. flip: half of them mirrored.
    """
    n, channels = x.shape[:2]
    place = np.zeros((n, 2, 3), np.float32)
    place[:, 0, 0] = place[:, 1, 1] = random.uniform(0.9, 1.1, n)
    place[:, :, 2] = random.uniform(-0.12, 0.12, (n, 2))  # the image is 2 wide
    if flip:
        place[:, 0, 0] *= random.choice([-1, 1], n)
    where = functional.affine_grid(torch.from_numpy(place), list(x.shape), align_corners=False)
    x = functional.grid_sample(x, where, padding_mode="border", align_corners=False)
    some = random.integers(2, size=(2, n, 1))  # half of the images are blurred, half have noise
    sigma = torch.from_numpy((0.01 + some[0] * random.uniform(0, 1.5, (n, 1))).astype(np.float32))
    taps = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * sigma**2))  # [n, 5]
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None, None]  # [n C, 1, 1, 5]
    flat = x.reshape(1, n * channels, *x.shape[2:])
    flat = functional.conv2d(functional.pad(flat, (2, 2, 0, 0), mode="replicate"), taps, groups=n * channels)
    flat = functional.conv2d(
        functional.pad(flat, (0, 0, 2, 2), mode="replicate"), taps.transpose(2, 3), groups=n * channels
    )
    level = (some[1] * random.uniform(0, 0.15, (n, 1))).astype(np.float32)[:, :, None, None]
    return flat.reshape(x.shape) + torch.from_numpy(level * random.standard_normal(x.shape, np.float32))
