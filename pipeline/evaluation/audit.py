"""Has a model kept its training images? Membership inference and copies, of images in memory; what is done is kept.

    heldout-pixels.npz  errors.npz  reference.npz  samples-000000.npy ...  samples-pixels.npz
    features-EXTRACTOR.npz

are parts of the work, each whole or not there, in a folder that belongs to one audit: a call that was killed goes on
with what is missing. Where images come from is `audit_data.py`, what is said of them `audit_report.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.pictures import Images, grid
from pipeline.errors import UserError, many
from pipeline.evaluation import attack
from pipeline.evaluation.metrics import copies, membership
from pipeline.evaluation.metrics.classes import wilson
from pipeline.evaluation.metrics.copies import Nearest
from pipeline.files import atomic_path

if TYPE_CHECKING:
    from pipeline.evaluation.metrics.features import Extractor
    from pipeline.generate.generator import Generator

Array = np.ndarray[Any, np.dtype[Any]]
LISTED = 50  # samples and training images that are named as the most exposed
SHOWN = 32  # samples beside their training images in the picture
LEAST = max(copies.LEAST, membership.LEAST)


@dataclass(frozen=True)
class Part:
    """Images uint8 [n, H, W, C] of a split, what each is told (as of `attack.loss_of`), and its key by its place."""

    images: Images
    told: Mapping[str, Any]
    key: Callable[[int], str]


@dataclass(frozen=True)
class Subject:
    """What is audited: a model, and the images that may be in it.

    train: all training images [m, H, W, C], of which those of `members` come first; held_out: as many as are looked at.
    teacher: of a student, whose own answers are jumps and no means, the denoiser that all it knows of images is from.
    """

    model: Generator
    train: Images = field(repr=False)
    members: Part = field(repr=False)
    held_out: Part = field(repr=False)
    extractor: Extractor = field(repr=False)
    trained_on: int  # training images there are; `train` may be a part of them
    teacher: Generator | None = field(default=None, repr=False)


def check(subject: Subject) -> None:
    """UserError where nothing can be said: before anything is computed."""
    for name, images in (("training", subject.members.images), ("held-out", subject.held_out.images)):
        if len(images) < LEAST:
            raise UserError(f"audit: {many(len(images), f'{name} image')}, {LEAST} at least; give more (`data.split`)")


def audit(
    subject: Subject, request: dict[str, Any], parts: Path, reference: tuple[Generator, Part, Part] | None = None
) -> tuple[dict[str, Any], Images]:
    """The report as plain JSON values, and the picture of samples beside their training images, uint8 [H, W, 3].

    request: the samples that are looked at, as of `Generator.request`. reference: another model that was not trained on
    these images, with members and held-out images and what it is told of them. Raises UserError.
    """
    check(subject)
    parts.mkdir(parents=True, exist_ok=True)
    model, seed, size = subject.model, request["seed"], request["batch_size"]
    others = subject.held_out.images

    _say("held-out images, and training images near to them")
    near_others = _nearest(parts / "heldout-pixels.npz", lambda: copies.by_pixels(others, subject.train))
    fence = copies.fence(near_others.ratio)
    new = near_others.ratio >= fence  # of held-out images those that are in the training data as well are no outsiders
    if new.sum() < LEAST:
        raise UserError(f"audit: of {len(new)} held-out images all but {new.sum()} are training images again")

    _say(f"errors of {len(subject.members.images)} training and {len(others)} held-out images")
    sides = (subject.members, subject.held_out)
    own = _kept(parts / "errors.npz", lambda: _errors(subject.teacher or model, sides, seed, size))
    base = None
    if reference:
        other, *theirs = reference
        base = _kept(parts / "reference.npz", lambda: _errors(other, theirs, seed, size))

    samples = np.concatenate([_block(subject.model, request, parts, begin) for begin in range(0, request["n"], size)])
    _say(f"training images near to {len(samples)} samples")
    near = _nearest(parts / "samples-pixels.npz", lambda: copies.by_pixels(samples, subject.train))
    seen = _kept(parts / f"features-{subject.extractor.digest[:12]}.npz", lambda: _by_features(subject, samples))
    by_features = {name: _unpacked(seen, f"{name}_") for name in ("samples", "held_out")}

    score = {name: attack.scores(own[name], base[name] if base else None) for name in ("members", "others")}
    values = {
        "membership": {
            **_told_apart(score["members"], score["others"][new]),
            "calibrated": reference is not None,
            "of_teacher": subject.teacher is not None,
            "levels": [
                {"level": level, **_auc(_at(own, base, "members", i), _at(own, base, "others", i)[new])}
                for i, level in enumerate(attack.LEVELS)
            ],
            "halves": _halves(score["others"][new]),
            "noises": attack.NOISES,
        },
        "copies": {
            "pixels": _copied(near, near_others, fence),
            "features": _copied(by_features["samples"], by_features["held_out"], None),
        },
        "images": {
            "train": len(subject.train),
            "trained_on": subject.trained_on,
            "members": len(subject.members.images),
            "held_out": len(others),
            "held_out_in_train": int((~new).sum()),
            "samples": len(samples),
        },
        "features": {key: getattr(subject.extractor, key) for key in ("kind", "digest", "description")},
        "model": model.about,
        "exposed": {
            "samples": _exposed_samples(near, fence, subject.members.key),
            "train": _exposed_images(score["members"], score["others"][new], subject.members.key),
        },
    }
    order = np.argsort(near.ratio, kind="stable")[:SHOWN]
    pairs = np.stack([samples[order], subject.train[near.index[order]]], axis=1)  # [p, 2, H, W, C]
    return values, grid(pairs.reshape(-1, *samples.shape[1:]), columns=8)


# ---- parts of the work -----------------------------------------------------------------------------------------------


def _say(what: str) -> None:
    print(f"audit: {what}", flush=True)


def _kept(path: Path, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """The arrays of a file; made and written first where it is not there. UserError for one that cannot be read."""
    if not path.exists():
        made = make()
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **made)  # type: ignore[arg-type]
        return made
    found: dict[str, Array] = _loaded(path)
    return found


def _loaded(path: Path) -> Any:
    import zipfile

    try:
        found = np.load(path, allow_pickle=False)
        return dict(found) if path.suffix == ".npz" else found
    except (OSError, ValueError, zipfile.BadZipFile):
        raise UserError(f"{path}: is damaged; remove it, and it is made again") from None


def _nearest(path: Path, make: Callable[[], Nearest]) -> Nearest:
    return _unpacked(_kept(path, lambda: _packed(make())))


def _packed(found: Nearest, prefix: str = "") -> dict[str, Array]:
    return {prefix + name: value for name, value in vars(found).items()}


def _unpacked(arrays: Mapping[str, Array], prefix: str = "") -> Nearest:
    return Nearest(**{name: arrays[prefix + name] for name in Nearest.__dataclass_fields__})


def _errors(model: Generator, sides: Any, seed: int, size: int) -> dict[str, Array]:
    found = {}
    for name, part in zip(("members", "others"), sides, strict=True):
        latents = model.encode(part.images, size)
        found[name] = attack.errors(attack.loss_of(model, part.told), latents, seed, size)
    return found


def _block(model: Generator, request: dict[str, Any], parts: Path, begin: int) -> Images:
    """The samples of a request from number `begin` on, a batch of them."""
    from pipeline.generate import told

    path = parts / f"samples-{begin:06d}.npy"
    if path.exists():
        found: Images = _loaded(path)
        return found
    rows = range(begin, min(begin + request["batch_size"], request["n"]))
    _say(f"samples {rows.start} to {rows.stop - 1} of {request['n']}")
    images = model.images({**told.of_rows(request, rows), "n": len(rows)}, first=begin)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, images)
    return images


def _by_features(subject: Subject, samples: Images) -> dict[str, Array]:
    train = subject.extractor(subject.train)
    found: dict[str, Array] = {}
    for name, images in (("samples", samples), ("held_out", subject.held_out.images)):
        sides = (subject.extractor(images), subject.extractor(np.ascontiguousarray(images[:, :, ::-1])))
        found |= _packed(copies.by_features(*sides, train), f"{name}_")
    return found


# ---- figures ---------------------------------------------------------------------------------------------------------


def _auc(members: Array, others: Array) -> dict[str, float]:
    return dict(zip(("auc", "low", "high"), membership.auc(members, others), strict=True))


def _at(own: Mapping[str, Array], base: Mapping[str, Array] | None, name: str, place: int) -> Array:
    """Scores at one level."""
    return attack.scores(own[name][:, [place]], base[name][:, [place]] if base else None)


def _told_apart(members: Array, others: Array) -> dict[str, float]:
    """AUC and true positive rate with their intervals."""
    rate = membership.found(members, others)
    both = zip(("tpr", "tpr_low", "tpr_high"), rate, strict=True)
    return {**_auc(members, others), **dict(both)}


def _halves(others: Array) -> dict[str, float]:
    """The AUC of one half of the held-out images against the other: 0.5 within its interval, or the attack invents."""
    half = len(others) // 2
    return _auc(others[:half], others[half:])


def _copied(samples: Nearest, held_out: Nearest, fence: float | None) -> dict[str, float]:
    """The share of samples below the fence of the held-out images' ratios, with its interval, and what it rests on."""
    fence = copies.fence(held_out.ratio) if fence is None else fence
    count = int((samples.ratio < fence).sum())
    low, high = wilson(count, len(samples.ratio))
    return {
        "share": count / len(samples.ratio),
        "low": low,
        "high": high,
        "count": count,
        "fence": fence,
        "held_out_share": float((held_out.ratio < fence).mean()),
        "ratio_median": float(np.median(samples.ratio)),
        "held_out_ratio_median": float(np.median(held_out.ratio)),
        "distance_median": float(np.median(samples.distance)),
        "held_out_distance_median": float(np.median(held_out.distance)),
    }


def _exposed_samples(near: Nearest, fence: float, key: Callable[[int], str]) -> list[dict[str, Any]]:
    order = np.argsort(near.ratio, kind="stable")[:LISTED]
    return [
        {
            "sample": int(i),
            "copy": bool(near.ratio[i] < fence),
            "ratio": float(near.ratio[i]),
            "distance": float(near.distance[i]),
            "of": key(int(near.index[i])),
            "mirrored": bool(near.mirrored[i]),
            "moved": [int(by) for by in near.moved[i]],
        }
        for i in order
    ]


def _exposed_images(members: Array, others: Array, key: Callable[[int], str]) -> list[dict[str, Any]]:
    order = np.argsort(-members, kind="stable")[:LISTED]
    return [
        {"of": key(int(i)), "score": float(members[i]), "held_out_above": float((others >= members[i]).mean())}
        for i in order
    ]
