"""A first config for images that were looked at (`look.py`) and for a machine: choices, each with its reason.

The text is YAML with comments; what the keys mean is said in `schema/`. Sizes of models and numbers of steps follow the
configs in `jobs/configs/`, scaled by the images' area and bounded by how many images there are.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError, by_reason, many
from pipeline.planning.look import Found
from pipeline.planning.starter_data import (
    FEWEST,
    about_losses,
    choose_limit,
    choose_quarantine,
    choose_split,
    shortened,
    yaml_text,
)
from pipeline.planning.starter_told import captioned, condition_lines

SIDES = (32, 48, 64, 96, 128, 192, 256)  # sizes to choose from: multiples of what autoencoder and patches need
CPU_AUTOENCODER = {4: "[1, 4, 4]", 8: "[1, 2, 4, 4]"}  # factor -> multipliers at width 16
GIGABYTE = 1e9
# docs/results/efficiency.md: for the falling rate at the end a short average of a denoiser's weights, and Muon
HALF_LIFE = 12, 80  # of the samples of a training, of the autoencoder and of the denoiser
MUON = "    optimizer: muon   # with batches of 64 half the samples of adamw with 128 to the same distance"


@dataclass(frozen=True)
class Machine:
    """What trains: number of GPUs and the memory of one in bytes (0: none), CPU cores that this process may use."""

    gpus: int
    gpu_bytes: int
    cpus: int


def this_machine() -> Machine:
    """The machine at hand. Imports torch."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    memory = int(torch.cuda.get_device_properties(0).total_memory) if count else 0
    return Machine(count, memory, len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class Plan:
    """The choices. train, val: images expected in each split."""

    name: str
    size: int
    channels: int
    train: int
    val: int
    split: str
    factor: int
    classes: bool
    flip: bool
    background: str
    max_quarantine: float
    steps: tuple[int, int]  # of autoencoder and diffusion model
    batch: tuple[int, int]
    samples: int
    quick: bool
    gpu: bool
    told: tuple[str, ...] = ()  # what is left out, or too little to train on
    limit: int | None = None


def plan(found: Found, machine: Machine, name: str, quick: bool = False) -> Plan:
    """Choose. Raises UserError for too few images."""
    if found.count < FEWEST:
        raise UserError(
            f"{many(found.count, 'image')}: at least {FEWEST} are needed, and a model worth having needs thousands"
        )
    copies = round(found.problems["duplicate"] / max(1, found.looked) * found.count)
    if found.count - copies < FEWEST:
        raise UserError(
            f"{many(found.count, 'image')}, but {found.count - copies:,} of them different: the others are copies; at "
            f"least {FEWEST} are needed, and a model worth having needs thousands"
        )
    limit = choose_limit(found) if quick else None
    found = found if limit is None else shortened(found, limit)
    gpu = machine.gpus > 0
    size = choose_size(found, 256 if gpu else 64)
    split, train, val, fraction = choose_split(found, quick)
    factor = (2 if size <= 48 else 4 if size <= 96 else 8) if gpu else (4 if size <= 48 else 8)
    wanted = (64 if size <= 96 else 32, 256) if gpu else (64 if size <= 48 else 32, 64)
    batch = (fitting(wanted[0], train), fitting(wanted[1], train))
    labelled = len(found.classes)
    return Plan(
        name=run_name(name),
        size=size,
        channels=found.channels or (1 if found.gray >= 0.99 else 3),
        train=train,
        val=val,
        split=split,
        factor=factor,
        classes=2 <= labelled <= max(2, found.count // 10),
        flip=found.gray < 0.99 and found.transparent < 0.1,
        background="[0, 0, 0]" if found.light > 0.5 else "[255, 255, 255]",
        max_quarantine=choose_quarantine(found),
        steps=choose_steps(size, size // factor, train, batch, gpu, quick),
        batch=batch,
        samples=max(64, min(100 if quick else 5000 if gpu else 1000, val)),
        quick=quick,
        gpu=gpu,
        told=tuple(about_losses(found, fraction)),
        limit=limit,
    )


def run_name(text: str) -> str:
    """A name as `run.name` takes it, like the one that is given."""
    return re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]+", "-", text).strip("-.")[:50] or "images"


def choose_size(found: Found, most: int) -> int:
    """The largest of SIDES that most images reach: four of five have a shorter side of nearly that."""
    shorter = sorted(min(size) for size in found.sizes)
    reach = shorter[len(shorter) // 5] * 1.1
    return max([SIDES[0], *(side for side in SIDES if side <= min(reach, most))])


def fitting(batch: int, train: int) -> int:
    """The largest power of two up to `batch` of which the training images hold two."""
    return min(batch, power_of_two(train // 2))


def power_of_two(most: int) -> int:
    """The largest power of two up to `most`; 1 at least."""
    return 1 << (max(1, most).bit_length() - 1)


def choose_steps(size: int, side: int, train: int, batch: tuple[int, int], gpu: bool, quick: bool) -> tuple[int, int]:
    """Steps of autoencoder and diffusion model. On a CPU about an hour in all on two cores; on a GPU by passes over the
    data. Never more passes than overfitting makes useless."""
    if quick:
        return 40, 60
    if gpu:
        samples = (min(max(60 * train, 500_000), 5_000_000), min(max(400 * train, 5_000_000), 100_000_000))
    else:
        samples = (115_000 * 32**2 // size**2, 320_000 * 8**2 // side**2)
    most = (300 * train, 600 * train)
    counts = [max(100, min(s, m) // b) for s, m, b in zip(samples, most, batch, strict=True)]
    return _round(counts[0]), _round(counts[1])


def _round(value: float) -> int:
    """To two digits."""
    return int(float(f"{value:.2g}"))


# ---- the text --------------------------------------------------------------------------------------------------------


def write_config(found: Found, chosen: Plan, machine: Machine) -> str:
    """The config as YAML with comments."""
    where = many(machine.gpus, "GPU") if machine.gpus else many(machine.cpus, "CPU core")
    images = many(found.count, "image")
    head = f"# Written by `ldm init` for {images} and {where}. `ldm explain KEY` says what a key means."
    rows = [
        head,
        *(["# Quick: it ends in minutes, to see all stages work; the model is no good."] if chosen.quick else []),
        *_run(chosen),
        *_data(found, chosen),
        *_autoencoder(chosen, machine),
        *_diffusion(found, chosen, machine),
        *_rest(found, chosen, machine),
    ]
    return "\n".join(rows) + "\n"


def _run(chosen: Plan) -> list[str]:
    return [
        "run:",
        f"  name: {yaml_text(chosen.name)}   # the run and the model in MLflow",
        "  root: runs   # artifacts and MLflow's data base; on a cluster a folder that all nodes share",
    ]


def _data(found: Found, chosen: Plan) -> list[str]:
    source = ", ".join(f"{key}: {yaml_text(value)}" for key, value in found.source.items())
    total = found.count + (found.held_out or 0)
    return [
        "data:",
        f"  source: {{{source}}}",
        *(f"  # {line}".replace("\n", " ") for line in [*found.notes, *about_classes(found, chosen), *chosen.told]),
        *([f"  limit: {chosen.limit}   # of {total:,} images, for speed; null: all"] if chosen.limit else []),
        f"  size: {chosen.size}   # {about_size(found, chosen)}",
        *(
            [f"  channels: {chosen.channels}   # {found.gray:.0%} of the images looked at are gray"]
            if found.values is None
            else _values(found.values, chosen)
        ),
        *(
            [f"  background: {chosen.background}   # {found.transparent:.0%} of the images have transparent parts"]
            if found.transparent > 0
            else []
        ),
        f"  split: {chosen.split}   # {about_split(found, chosen)}",
        f"  shard_size: {max(64, min(2048, power_of_two((chosen.limit or found.count) // 8)))}   # images a shard",
        *(
            [f"  max_quarantine: {chosen.max_quarantine:g}   # {about_problems(found)}"]
            if chosen.max_quarantine > 0.01
            else []
        ),
        f"  augment: {{flip: {str(chosen.flip).lower()}}}   # {about_flip(found)}",
    ]


def _values(values: dict[str, Any], chosen: Plan) -> list[str]:
    percentiles = yaml_text(values["percentiles"])
    return [
        f"  channels: {chosen.channels}   # bands of an image",
        "  values:",
        f"    dtype: {values['dtype']}   # holds all values that were read; samples have it, too",
        f"    percentiles: {percentiles}   # of each band: -1 and 1 to the models; or `range`, `window`",
    ]


def _autoencoder(chosen: Plan, machine: Machine) -> list[str]:
    side = chosen.size // chosen.factor
    if chosen.gpu:
        model = f"{{kind: kl, preset: base-f{chosen.factor}}}"
    else:
        channels = 2 if chosen.channels == 1 else 4
        multipliers = CPU_AUTOENCODER[chosen.factor]
        model = (
            f"{{kind: kl, width: 16, multipliers: {multipliers}, blocks: 1, latent_channels: {channels}, groups: 8, "
            "attention: false}"
        )
    rate, micro = (
        "1e-4",
        [f"    micro_batch: {_micro(chosen, machine)}   # images at once a GPU; halve it if memory runs out"],
    )
    if not chosen.gpu:
        rate, micro = "2e-3", []
    return [
        "autoencoder:",
        f"  # Latents of {side}x{side}: 1/{chosen.factor} of the images' side.",
        f"  model: {model}",
        "  loss: {reconstruction: l1, kl_weight: 1e-4}",
        *_training(chosen, 0, rate, micro),
        "latents:",
        f"  views: {'[as_is, flip]' if chosen.flip else '[as_is]'}   # with flip: mirrored images are encoded as well",
    ]


def _micro(chosen: Plan, machine: Machine) -> int:
    """Images of the autoencoder at once: about 10 GB of activations at 256x256 for 8 of them."""
    room = max(1.0, machine.gpu_bytes / GIGABYTE / 12) * 8 * 256**2 / chosen.size**2
    return min(chosen.batch[0], power_of_two(int(room)))


def _diffusion(found: Found, chosen: Plan, machine: Machine) -> list[str]:
    if chosen.gpu:
        preset = "diffusers-s/2" if chosen.train < 20_000 or machine.gpu_bytes < 12 * GIGABYTE else "diffusers-b/2"
        backbone, why = f"{{kind: dit, preset: {preset}}}", "DiT-S below 20,000 images or 12 GB, else DiT-B"
    else:
        backbone = "{kind: dit, width: 128, depth: 6, heads: 4, patch: 2, frequency_shift: 1}"
        why = "small enough for a CPU"
    if captioned(found):
        backbone = backbone.replace("}", ", tokens: cross}")
        why += "; it attends to captions; without them (`tokens`, `caption`) `ldm export` could write it for diffusers"
    else:
        why += "; `ldm export` can write it for diffusers"
    return [
        "diffusion:",
        f"  backbone: {backbone}   # {why}",
        *condition_lines(found, chosen.classes),
        *_training(chosen, 1, "2e-4" if chosen.gpu else "1e-3", [MUON]),
    ]


def _training(chosen: Plan, which: int, rate: str, more: list[str]) -> list[str]:
    """The `training` section of the autoencoder (0) or the diffusion model (1)."""
    steps, batch = chosen.steps[which], chosen.batch[which]
    every = max(10, _round(steps / (2 if chosen.quick else 8)))  # quick: so that validation costs less than training
    half_life = max(100, _round(steps * batch / HALF_LIFE[which]))
    return [
        "  training:",
        f"    batch_size: {batch}",
        f"    steps: {steps}   # {about_passes(steps * batch, chosen.train)}; more help while validation improves",
        f"    learning_rate: {rate}",
        f"    warmup: {max(5, min(1000, _round(steps / 20)))}",
        "    schedule: wsd   # constant, falling at the end: a longer run can go on from this one",
        f"    half_lives: [{half_life}]   # of the average of the weights, in samples",
        *more,
        f"    validate_every: {every}",
        f"    preview_every: {every}",
        f"    save_every: {every}",
    ]


def _rest(found: Found, chosen: Plan, machine: Machine) -> list[str]:
    compared = min(chosen.samples, chosen.val, chosen.train // 2)
    few = "" if compared >= 50 else "; a Fréchet distance needs 50"
    rows = [
        "evaluate:",
        f"  samples: {chosen.samples}   # {compared} images a set can be compared{few}",
        f"  steps: {10 if chosen.quick else 20}",
        f"  guidance: {1.5 if chosen.classes or captioned(found) else 1}   # 1: none",
        *(["  extractor: {kind: classifier, steps: 50}"] if chosen.quick else []),
    ]
    if chosen.gpu:
        return [*rows, "cluster:", "  workers: auto   # a rank a GPU"]
    ranks = power_of_two(min(8, machine.cpus))
    return [*rows, "cluster:", f"  workers: {ranks}", f"  threads: {max(1, machine.cpus // ranks)}"]


# ---- reasons ---------------------------------------------------------------------------------------------------------


def about_size(found: Found, chosen: Plan) -> str:
    shorter = sorted(min(size) for size in found.sizes)
    low, middle, high = shorter[0], shorter[len(shorter) // 2], shorter[-1]
    sides = f"shorter sides are {low}" + ("" if low == high else f" to {high}, half of them up to {middle}")
    smaller = sum(side < chosen.size for side in shorter) / len(shorter)
    if smaller > 0.005:
        sides += f"; {smaller:.0%} are enlarged"
    if middle >= 2 * chosen.size:
        sides += "; more detail takes a larger size and " + ("more time" if chosen.gpu else "a GPU")
    return sides


def about_classes(found: Found, chosen: Plan) -> list[str]:
    if not found.classes:
        return ["No classes were found: in a folder they are subfolders, in a table a column."]
    common = found.classes.most_common()
    shown = ", ".join(f"{name}: {count:,}" for name, count in common[:5]) + (", ..." if len(common) > 5 else "")
    ((name, count),) = common[-1:]
    lines = [f"{many(len(common), 'class', 'classes')}: {shown}".replace("\n", " ")]
    if chosen.classes and count * 10 < common[0][1]:
        lines.append(
            f"They are uneven ({name}: {count}): `balance: {{power: 0.5}}` meets rare ones more often.".replace(
                "\n", " "
            )
        )
    if not chosen.classes:
        lines.append("Too many for so few images, or only one: the model is not told the class.")
    return lines


def about_passes(samples: int, train: int) -> str:
    if samples < train:
        return f"{samples:,} of {train:,} images are met once"
    return f"{_round(samples / train):,} passes over the images" if samples >= 2 * train else "about one pass"


def about_split(found: Found, chosen: Plan) -> str:
    counts = f"{chosen.train:,} to train, {chosen.val:,} held out"
    if found.groups:
        return f"{counts}; images of the same {found.groups[0]} stay together"
    if found.own:
        return counts + "; as the source says"
    return counts + ("; as the names of the tars say" if found.held_out is not None else "")


def about_problems(found: Found) -> str:
    return f"of {many(found.looked, 'image')} looked at: {by_reason(found.problems)}; these are left out"


def about_flip(found: Found) -> str:
    if found.gray >= 0.99 or found.transparent >= 0.1:
        return "true if a mirrored image is as good (not for letters, digits, signs)"
    return "mirrored images are as good; false if there are letters or signs"
