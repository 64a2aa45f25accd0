"""Pipelines beside each other: which is better and how sure that is, what differs in config and in figures.

A figure decides only where it means the same in all runs (`unlike` says why it does not). Reading runs is
`history.py`, the page is `compare_page.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.past import comparable, history
from pipeline.past.history import Curve, Past

HIGHER = ("psnr", "ssim", "accuracy", "precision", "recall", "density", "coverage", "usage", "sharpness")
BESIDE = ("classifier", "gaussian", "pca")  # beginnings of what is measured for comparison
LOWER = ("loss", "fd", "kd", "kid", "lpips", "perceptual", "rfd", "reconstruction", "fd_reconstructions")
NAMES = {
    "eval/fd": "Fréchet distance",
    "diffusion/val_loss": "validation loss of the diffusion model",
    "autoencoder/val_psnr": "PSNR of held-out reconstructions",
}
DECIDES = tuple(NAMES)  # the first of these that all runs have, and that can be compared, gives the verdict
LOSS_PARAMS = ("diffusion.path.", "diffusion.prediction", "diffusion.weighting", "diffusion.times.")
UNTOLD = ("run.root",)  # params that may differ without any meaning
CLOSE = 0.01  # share by which figures without an interval must differ to be called different


@dataclass(frozen=True)
class Side:
    """One run of a comparison. label: what tells it from the others."""

    past: Past
    label: str

    @cached_property
    def curves(self) -> dict[str, Curve]:
        return history.curves(self.past)

    @cached_property
    def report(self) -> dict[str, Any] | None:
        """The evaluation's report, if that stage is finished."""
        path = self.past.folders.get("evaluate", Path("/nowhere")) / "report.json"
        return dict(read_json(path)) if path.exists() else None

    def last(self, name: str) -> float | None:
        """A metric's last value that is a number."""
        values = [value for _, value in self.curves.get(name, []) if math.isfinite(value)]
        return values[-1] if values else None

    def content(self, stage: str) -> str | None:
        """Content digest of a stage's finished artifact."""
        path = self.past.folders.get(stage, Path("/nowhere")) / "manifest.json"
        return str(read_json(path)["content"]) if path.exists() else None


@dataclass(frozen=True)
class Verdict:
    """text: the sentence. winner: its place, None if there is none. metric: what decided. why_not: figures that could
    not decide, and why."""

    text: str
    winner: int | None = None
    metric: str | None = None
    why_not: list[str] = field(default_factory=list)


def sides(root: str | Path, names: Sequence[str]) -> list[Side]:
    """The runs that are meant. Raises UserError for fewer than two different ones."""
    pasts = list({(past.root, past.key): past for past in (history.find(root, name) for name in names)}.values())
    if len(pasts) < 2:
        known = "; ".join(history.describe(past) for past in history.pipelines(root)) or "none"
        raise UserError(f"two different runs are needed, {len(pasts)} given; runs under {Path(root)}: {known}")
    labels = told_apart(pasts)
    return [Side(past, label) for past, label in zip(pasts, labels, strict=True)]


def told_apart(pasts: Sequence[Past]) -> list[str]:
    """A label for each run: its name, with what it was trained with that others were not, or with its key."""
    trained = {k: v for k, v in differences(pasts).items() if k.partition(".")[0] not in ("run", "evaluate")}
    labels = [past.name for past in pasts]
    if len(set(labels)) == len(labels):
        return labels
    if 0 < len(trained) <= 2:
        told = [
            ", ".join(f"{k.rpartition('.')[2]} {values[i]}" for k, values in trained.items()) for i in range(len(pasts))
        ]
        labels = [f"{past.name} ({text})" for past, text in zip(pasts, told, strict=True)]
    if len(set(labels)) < len(labels):
        labels = [f"{past.name} ({past.key[:6]})" for past in pasts]
    return labels


def differences(pasts: Sequence[Past]) -> dict[str, list[str]]:
    """Params that are not the same in all: name -> the value of each run ("-": that run has none)."""
    names = dict.fromkeys(name for past in pasts for name in past.params if name not in UNTOLD)
    rows = {name: [past.params.get(name, "-") for past in pasts] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def better(name: str) -> int:
    """1 if more of a metric is better, -1 if less is, 0 if neither can be said."""
    stage, _, word = name.rpartition("/")
    beside = word.endswith(("_real", "_yardstick", "_random", "_train")) or word.startswith(BESIDE)
    if stage == "ingest" or beside:  # of the data, or of another model
        return 0
    parts = {word, *word.split("_")}
    if parts & set(HIGHER):
        return 1
    return -1 if parts & set(LOWER) and "spikes" not in parts else 0


def scores(compared: Sequence[Side], every: bool = False) -> dict[str, list[float | None]]:
    """The last value of each metric in each run; those that say good or bad only, unless `every`."""
    names = dict.fromkeys(name for side in compared for name in side.curves)
    rows = {name: [side.last(name) for side in compared] for name in names if every or better(name)}
    order = {name: place for place, name in enumerate(("eval", "diffusion", "autoencoder"))}
    return dict(
        sorted(rows.items(), key=lambda row: (row[0] not in DECIDES, order.get(row[0].split("/")[0], 9), row[0]))
    )


def best(name: str, values: Sequence[float | None], compared: Sequence[Side]) -> int | None:
    """The place of the best value, None where all are equal, nothing can be said, or they mean different things."""
    known = [(value * better(name), place) for place, value in enumerate(values) if value is not None]
    if not better(name) or len(known) < 2 or len({value for value, _ in known}) == 1:
        return None
    if meaning(name) and obstacles(meaning(name), compared):
        return None
    return max(known, key=lambda pair: (pair[0], -pair[1]))[1]


def meaning(name: str) -> str:
    """The deciding figure that must be comparable for this one to be; empty for those that stand for themselves."""
    stage, _, word = name.rpartition("/")
    if stage == "eval" or "fd" in word.split("_"):
        return "autoencoder/val_psnr" if word in ("psnr", "ssim") else "" if "accuracy" in word else "eval/fd"
    return {"diffusion": "diffusion/val_loss", "autoencoder": "autoencoder/val_psnr"}.get(stage, "")


# ---- verdict ---------------------------------------------------------------------------------------------------------


def unlike(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Why the distances of two evaluation reports must not be compared; empty if they may be."""
    if not all("samples" in report["frechet"] for report in (first, second)):
        return ["one has no Fréchet distance"]
    try:
        reason = comparable.why_not(comparable.conditions(first), comparable.conditions(second))
    except UserError as error:
        return [str(error)]
    return [reason] if reason else []


def obstacles(name: str, compared: Sequence[Side]) -> list[str]:
    """Why a deciding figure does not mean the same in all runs; empty if it does."""
    first, *others = compared
    if any(side.last(name) is None for side in compared):
        return [f"{side.label} has none" for side in compared if side.last(name) is None]
    found: list[str] = []
    for other in others:
        if name == "eval/fd":
            found += unlike(first.report, other.report) if first.report and other.report else ["a report is missing"]
        elif name == "diffusion/val_loss":
            if first.content("encode") != other.content("encode"):
                found.append("it was measured on other latents")
            told = [history.told(side.past) for side in (first, other)]
            if told[0] != told[1]:
                found.append(f"one model is told {told[0]}, the other {told[1]}")
            found += [
                f"{key} is {values[0]} and {values[1]}"
                for key, values in differences([first.past, other.past]).items()
                if key.startswith(LOSS_PARAMS)
            ]
        elif first.content("ingest") != other.content("ingest"):
            found.append("it was measured on other images")
    return list(dict.fromkeys(found))


def verdict(compared: Sequence[Side]) -> Verdict:
    """Which run is better by the first figure that decides, with its size, and whether the difference is clear."""
    why_not = []
    for name in DECIDES:
        reasons = obstacles(name, compared)
        if reasons:
            why_not.append(f"{NAMES[name]} does not decide: {'; '.join(reasons)}")
            continue
        return _decided(name, compared, why_not)
    return Verdict("No verdict: no figure means the same in all of these runs.", why_not=why_not)


def _decided(name: str, compared: Sequence[Side], why_not: list[str]) -> Verdict:
    values = [side.last(name) or 0.0 for side in compared]
    order = sorted(range(len(values)), key=lambda i: -better(name) * values[i])
    first, second = order[0], order[1]
    shown = [_figure(name, side, value) for side, value in zip(compared, values, strict=True)]
    direction = "lower is better" if better(name) < 0 else "higher is better"
    if name == "eval/fd":
        real = (compared[0].report or {})["frechet"]["real"]["value"]
        direction += f"; real data: {real:.3g}"
    figures = f"{NAMES[name]} {shown[first]} against " + ", ".join(shown[i] for i in order[1:]) + f" ({direction})"
    if values[first] == values[second]:
        return Verdict(f"No difference: {figures}.", None, name, why_not)
    if not _clear(name, compared[first], compared[second]):
        return Verdict(f"No clear difference, {compared[first].label} is ahead: {figures}.", None, name, why_not)
    return Verdict(f"{compared[first].label} is better: {figures}.", first, name, why_not)


def _interval(side: Side) -> tuple[float, float]:
    low, high = (side.report or {})["frechet"]["samples"]["interval"]
    return float(low), float(high)


def _figure(name: str, side: Side, value: float) -> str:
    if name != "eval/fd":
        return f"{value:.4g}" + (" dB" if name.endswith("psnr") else "")
    low, high = _interval(side)
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _clear(name: str, winner: Side, second: Side) -> bool:
    """Whether intervals do not touch; for figures without one, whether they differ by more than CLOSE."""
    if name == "eval/fd":
        return _interval(winner)[1] < _interval(second)[0]
    a, b = winner.last(name) or 0.0, second.last(name) or 0.0
    return abs(a - b) > CLOSE * max(abs(a), abs(b))


def shared(compared: Sequence[Side]) -> dict[str, str]:
    """Stages whose run is one and the same in all: stage -> run key."""
    first, *others = (side.past.stages for side in compared)
    return {stage: key for stage, key in first.items() if all(other.get(stage) == key for other in others)}
