"""`ldm probe`: what features of `ldm features` are good for, beside pixels, patch PCA and the autoencoder's latents.

Classes by a linear probe (logistic regression) and by the k nearest neighbours of the cosine (weights exp(cosine /
0.07), Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers"), told 10, 100 and all labels a
class; boxes by ridge regression, with the mean IoU. A probe is given all numbers of a representation, of maps those of
all places, each with mean 0 and deviation 1 over what it is told.

Three parts: test images, whose groups no other part has; of the others a fifth, by group, that decides on the strength
of the penalty and on the level and block; the rest. The probe is then fitted to both of these. Where the data are those
of a config, test images are those that its training held out, for all seeds; else each seed draws its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.applications.made_images import written
from pipeline.data.arrays import open_npz, read_array
from pipeline.data.held_out import held_out
from pipeline.errors import UserError, many
from pipeline.evaluation.metrics.probes import Fit, interval, linear, neighbours, overlap, ridge, right, tuned
from pipeline.files import canonical_json, read_json

Array = np.ndarray[Any, np.dtype[Any]]
FEW = (10, 100)  # labels a class
TEST, TUNE = 0.2, 0.2  # shares: of all groups, and of those that are not for tests
PIXELS = 64  # a side, of raw pixels: larger images are averaged
LEAST = 20  # images in each part
BESIDE = ("pixels", "latents", "patch PCA", "same box")  # what stands beside features, in this order


@dataclass(frozen=True)
class Table:
    """A file of features. known: keys, labels, split and columns by name, text [n]; about: what made it."""

    path: Path
    known: dict[str, Array]
    about: dict[str, Any]
    names: list[str]  # of the features
    beside: list[str]  # "pixels" and "latents", where they are there

    def column(self, option: str, name: str) -> Array:
        """A column, text [n]. UserError where there is none, as `option` has it."""
        found = self.known.get(f"column/{name}")
        if found is None:
            there = ", ".join(key.partition("/")[2] for key in self.known if key.startswith("column/")) or "none"
            raise UserError(
                f"{option} {name}: {self.path} has no such column; it has: {there}; give others to "
                "`ldm features --columns`"
            )
        return found

    def array(self, name: str) -> Array:
        """An array of the file, read anew each time: [n, ...]. UserError for what is no finite numbers of each key."""
        with open_npz(str(self.path)) as file:
            found = read_array(file, name, str(self.path))
        if found.ndim < 2 or len(found) != len(self.known["keys"]) or found.dtype.kind not in "fu":
            raise UserError(f"{self.path}: {name} is {found.dtype}{found.shape}; run `ldm features` again")
        if not np.isfinite(found).all():
            raise UserError(f"{self.path}: {name} is not finite; run `ldm features` again")
        return found


def load(path: Path) -> Table:
    """What a file of features holds. UserError for another file, and for arrays of unlike lengths."""
    if path.suffix != ".npz" or not path.is_file():
        raise UserError(f"{path}: is no .npz file; `ldm features` writes one")
    with open_npz(str(path)) as file:
        there = list(file)
        if not {"keys", "labels", "about"} <= set(there):
            raise UserError(f"{path}: is no file of features; `ldm features` writes one")
        named = [n for n in there if n in ("keys", "labels", "split") or n.startswith("column/")]
        known = {name: read_array(file, name, str(path)) for name in named}
        try:
            about = dict(json.loads(str(read_array(file, "about", str(path)))))
            canonical_json(about)  # no NaN, which Python's own reader takes
        except (ValueError, TypeError):
            raise UserError(f"{path}: does not say what it was made of; run `ldm features` again") from None
    names = [name for name in there if "/block" in name]
    if not names or any(array.dtype.kind != "U" or array.shape != known["keys"].shape for array in known.values()):
        raise UserError(f"{path}: holds no features, or not of each key; run `ldm features` again")
    return Table(path, known, about, names, [name for name in ("pixels", "latents") if name in there])


def earlier(out: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figures that a call has written to `out`; None where nothing is there. UserError for what is something else
    than is `asked` now, and where nothing can be written."""
    return dict(read_json(out)) if written(out, asked, _asked) else None


def _asked(out: Path) -> Any:
    """What a file of figures says that was asked; None where there is nothing sound."""
    try:
        return read_json(out)["asked"]
    except (ValueError, KeyError, TypeError):
        return None


# ---- parts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """Places of the images of one seed: to fit, to choose penalty, level and block by, to test. shared: the test images
    are those of all seeds."""

    fit: Array
    tune: Array
    test: Array
    shared: bool = field(default=False)


def parts(table: Table, seed: int, group: str | None, usable: Array) -> Parts:
    """The parts of the images `usable` (places). group: a column whose images of one value are in one part. UserError
    for a column that is not there, and where a part has too few images."""
    values = (table.known["keys"] if group is None else table.column("--group", group))[usable]
    shared = group is None and "split" in table.known
    test = table.known["split"][usable] == "val" if shared else _drawn(values, f"{seed}/test", TEST)
    tune = ~test & _drawn(values, f"{seed}/tune", TUNE)
    found = Parts(usable[~test & ~tune], usable[tune], usable[test], shared)
    for name, part in (("to fit", found.fit), ("to choose by", found.tune), ("to test", found.test)):
        if len(part) < LEAST:
            raise UserError(
                f"{table.path}: {many(len(part), 'image')} {name}, {LEAST} at least; give more images or groups"
            )
    return found


def _drawn(values: Array, purpose: str, share: float) -> Array:
    """Whether each group is in a share of all, bool [n]."""
    chosen = {value: held_out(f"{purpose}/{value}", share) for value in np.unique(values).tolist()}
    return np.array([chosen[value] for value in values.tolist()])


def few(labels: Array, places: Array, count: int, seed: int) -> Array:
    """Places of `count` images a class, or all that a class has, drawn by the seed."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(places)
    return np.concatenate([order[labels[order] == label][:count] for label in np.unique(labels[places])])


# ---- representations -------------------------------------------------------------------------------------------------


def representations(table: Table, parts: Parts, chosen: str) -> dict[str, Callable[[], Array]]:
    """What is compared, by name, the features that were `chosen` first, each made when it is called: [n, ...]. The PCA
    is fitted to what is not for tests."""
    found: dict[str, Callable[[], Array]] = {name: partial(table.array, name) for name in (chosen, *table.beside)}
    if "pixels" in found:
        found["pixels"] = lambda: _smaller(table.array("pixels"))
    if {"pixels", "latents"} <= set(found) and table.array("latents").ndim == 4:  # else no patch is that of a latent
        found["patch PCA"] = partial(_patch_pca, table, np.concatenate([parts.fit, parts.tune]))
    return found


def _smaller(images: Array) -> Array:
    """Images [n, H, W, C] with sides of at most PIXELS: means of whole blocks of pixels; float32 where these are."""
    n, height, width, channels = images.shape
    step = -(-max(height, width) // PIXELS)
    if step == 1:
        return images
    rows, columns = height // step, width // step
    found = np.empty((n, rows, columns, channels), np.float32)
    for i, image in enumerate(images):
        blocks = image[: rows * step, : columns * step].reshape(rows, step, columns, step, channels)
        found[i] = blocks.mean((1, 3))
    return found


def _patch_pca(table: Table, places: Array) -> Array:
    """The first components of patches, as many numbers as the latents: float32 [n, patches, C]."""
    import torch

    from pipeline.tasks.patch_pca import PCA_BATCH, PCA_IMAGES, components, patches

    images, latents = table.array("pixels"), table.array("latents")
    side, keep = images.shape[1] // latents.shape[2], latents.shape[1]
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))  # [n, C, H, W]
    d = x.shape[1] * side * side
    count, total, square = 0, torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    chosen = places[:: -(-len(places) // PCA_IMAGES)]
    for begin in range(0, len(chosen), PCA_BATCH):
        p = patches(x[chosen[begin : begin + PCA_BATCH]], side).flatten(0, 1)
        count, total, square = count + len(p), total + p.sum(0), square + p.T @ p
    mean, basis = components(count, total, square, keep)
    codes = [(patches(x[i : i + PCA_BATCH], side) - mean) @ basis for i in range(0, len(x), PCA_BATCH)]
    return torch.cat(codes).float().numpy()


def flat(array: Array) -> Array:
    """Float32 [n, d] of a representation [n, ...], all places of a map beside each other."""
    found: Array = array.reshape(len(array), -1).astype(np.float32)
    return found


def scaled(x: Array, told: Array) -> Array:
    """Each number with mean 0 and deviation 1 over the places `told`; one that is constant there is 0."""
    mean, std = x[told].mean(0), x[told].std(0)
    found: Array = ((x - mean) / np.where(std > 1e-6, std, np.inf)).astype(np.float32)
    return found


# ---- the two questions -----------------------------------------------------------------------------------------------


def classes(
    table: Table, target: str | None = None, group: str | None = None, seeds: int = 5, counts: Sequence[int] = FEW
) -> dict[str, Any]:
    """How well a column of text (default: the labels) is told from features, and from what stands beside.

    Level and block are chosen by the first seed's linear probe with all labels, on images that are not for tests.
    Returns JSON values: tuning by name, chosen, figures by representation, probe and labels a class; `gain` is that of
    the linear probe with all labels `over` the best of the others. UserError where there are no two classes, or too few
    images.
    """
    text = table.column("--target", target) if target else table.known["labels"]
    names, labels = np.unique(text, return_inverse=True)
    usable = np.flatnonzero(text != "")
    if len(np.unique(labels[usable])) < 2 or len(np.unique(labels[usable])) > len(usable) // 4:
        raise UserError(f"{table.path}: {target or 'labels'} holds no classes; --target names another column")
    drawn = [parts(table, seed, group, usable) for seed in range(seeds)]
    tuning = _tuning(table, drawn[0], linear, right, labels)
    chosen = max(tuning, key=lambda name: tuning[name])
    each: dict[str, dict[str, dict[str, list[float]]]] = {}
    settings = [*map(str, counts), "all"]
    for seed, own in enumerate(drawn):
        for shown, make in representations(table, own, chosen).items():
            x = flat(make())
            for setting in settings:
                told = np.concatenate([own.fit, own.tune])
                told = told if setting == "all" else few(labels, told, int(setting), seed)
                tune = np.isin(told, own.tune)
                z = scaled(x, told)
                if not tune.any() or len(np.unique(labels[told[~tune]])) < 2:
                    raise UserError(f"{table.path}: {setting} labels a class are too few to fit and to choose by")
                _, penalty = tuned(linear, right, z, labels, told[~tune], told[tune])
                probes = {
                    "linear": linear(z[told], labels[told], penalty),
                    "neighbours": neighbours(z[told], labels[told]),
                }
                for probe, answer in probes.items():
                    found = right(answer(z[own.test]), labels[own.test])
                    each.setdefault(shown, {}).setdefault(probe, {}).setdefault(setting, []).append(found)
            print(f"probe: seed {seed}, {shown}", flush=True)
    test = len(drawn[0].test) if drawn[0].shared else None
    figures = {
        shown: {probe: {s: interval(v, test) for s, v in of.items()} for probe, of in probes.items()}
        for shown, probes in each.items()
    }
    others = {name: probes["linear"]["all"]["mean"] for name, probes in figures.items() if name != chosen}
    best = max(others, key=lambda name: others[name], default=None)
    gain = {} if best is None else {"over": best, "gain": figures[chosen]["linear"]["all"]["mean"] - others[best]}
    return {
        "target": target or "labels",
        "classes": [str(names[i]) for i in np.unique(labels[usable])],
        **_about(table, drawn, group, tuning, chosen),
        "figures": figures,
        **gain,
    }


def boxes(table: Table, columns: Sequence[str], group: str | None = None, seeds: int = 5) -> dict[str, Any]:
    """How well the box of an object is told: mean IoU. columns: of x0, y0, x1, y1 as shares of the image's sides.

    Beside the others stands "same box": the mean of the boxes told. JSON values as of `classes`. UserError for columns
    that are not there or hold no boxes.
    """
    truth = _boxes(table, columns)
    usable = np.flatnonzero(np.isfinite(truth).all(1))
    drawn = [parts(table, seed, group, usable) for seed in range(seeds)]
    tuning = _tuning(table, drawn[0], ridge, overlap, truth)
    chosen = max(tuning, key=lambda name: tuning[name])
    each: dict[str, list[float]] = {}
    for seed, own in enumerate(drawn):
        told = np.concatenate([own.fit, own.tune])
        for shown, make in representations(table, own, chosen).items():
            z = scaled(flat(make()), told)
            _, penalty = tuned(ridge, overlap, z, truth, own.fit, own.tune)
            found = overlap(ridge(z[told], truth[told], penalty)(z[own.test]), truth[own.test])
            each.setdefault(shown, []).append(found)
        same = np.repeat(truth[told].mean(0, keepdims=True), len(own.test), axis=0)
        each.setdefault("same box", []).append(overlap(same, truth[own.test]))
        print(f"probe: seed {seed}", flush=True)
    return {
        "columns": list(columns),
        **_about(table, drawn, group, tuning, chosen),
        "figures": {shown: interval(values, None) for shown, values in each.items()},
    }


def _boxes(table: Table, columns: Sequence[str]) -> Array:
    """Boxes float64 [n, 4]; NaN where there is none."""
    if len(columns) != 4:
        raise UserError(f"--box {','.join(columns)}: expected four columns: left, top, right and bottom")
    corners = [table.column("--box", name).tolist() for name in columns]
    try:
        found = np.array([[float(v or "nan") for v in corner] for corner in corners]).T
    except ValueError as error:
        raise UserError(f"--box {','.join(columns)}: {error}; expected numbers") from None
    there = found[np.isfinite(found).all(1)]
    if len(there) and not (there.min() >= 0 and there.max() <= 1 and (there[:, :2] < there[:, 2:]).all()):
        raise UserError(f"--box {','.join(columns)}: expected shares of the sides, 0 to 1, left < right, top < bottom")
    return found


def _tuning(table: Table, own: Parts, fit: Fit, score: Callable[[Array, Array], float], y: Array) -> dict[str, float]:
    """The score of each level and block on the images to choose by."""
    found = {}
    for name in table.names:
        z = scaled(flat(table.array(name)), own.fit)
        found[name] = tuned(fit, score, z, y, own.fit, own.tune)[0]
        print(f"probe: {name} {found[name]:.3f}", flush=True)
    return found


def _about(table: Table, drawn: Sequence[Parts], group: str | None, tuning: dict[str, float], chosen: str) -> Any:
    own = drawn[0]
    return {
        "features": str(table.path.absolute()),
        "model": table.about.get("model"),
        "images": {"fit": len(own.fit), "tune": len(own.tune), "test": len(own.test)},
        "held_out": "the config's" if own.shared else f"by {group or 'key'}, anew for each seed",
        "seeds": len(drawn),
        "tuning": tuning,
        "chosen": chosen,
    }


def metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """The figures by names that do not hang on which level and block was chosen."""
    shown = {"features" if name == values["chosen"] else name: of for name, of in values["figures"].items()}
    if "columns" in values:  # of boxes
        return {name: of["mean"] for name, of in shown.items()}
    return {
        f"{name}/{probe}_{setting}": figure["mean"]
        for name, probes in shown.items()
        for probe, settings in probes.items()
        for setting, figure in settings.items()
    }


def rows(values: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the figures, for people: the features first."""
    figures: Mapping[str, Any] = values["figures"]
    names = [values["chosen"], *(name for name in BESIDE if name in figures)]
    if "columns" in values:
        return ["", "mean IoU"], [[name, _cell(figures[name])] for name in names]
    settings = sorted(figures[names[0]]["linear"], key=lambda text: int(text) if text.isdecimal() else math.inf)
    asked = [(probe, setting) for probe in ("linear", "neighbours") for setting in settings]
    header = ["", *(f"{probe}, {setting} labels" for probe, setting in asked)]
    return header, [[name, *(_cell(figures[name][probe][setting]) for probe, setting in asked)] for name in names]


def _cell(figure: Mapping[str, Any]) -> str:
    text = f"{figure['mean']:.1%}"
    return f"{text} [{figure['low']:.1%}, {figure['high']:.1%}]" if "low" in figure else text
