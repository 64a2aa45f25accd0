"""An audit in words, its figures by name, and the gate: which of them are over what a config allows.

report.json  all figures, and the most exposed    report.md  the same to read    copies.png  samples, training images
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import atomic_write, write_json

if TYPE_CHECKING:
    from pipeline.data.pictures import Images

FILES = ("report.json", "report.md", "copies.png")
TOLD = 10  # of the most exposed, in report.md


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures that a gate may bound, by name; more is worse."""
    return {
        "membership_auc": report["membership"]["auc"],
        "membership_tpr": report["membership"]["tpr"],
        "copies": report["copies"]["pixels"]["share"],
        "copies_features": report["copies"]["features"]["share"],
    }


def refuse(report: Mapping[str, Any], gate: Mapping[str, float | None], where: Path) -> None:
    """UserError where a figure is over its bound in the gate (name -> bound, None for none)."""
    over = [
        f"{name} is {value:.4g}, and `register.gate.{name}` allows {bound:.4g}"
        for name, value in figures(report).items()
        if (bound := gate.get(name)) is not None and value > bound
    ]
    if over:
        raise UserError(f"not registered: {'; '.join(over)}; {where} names what is exposed")


def public(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report without the names of training images: what may go with a model."""
    return {name: value for name, value in report.items() if name != "exposed"}


def write(folder: Path, report: Mapping[str, Any], picture: Images | None) -> None:
    """Write the files, report.json last."""
    from PIL import Image

    from pipeline.data.transforms import to_png

    if picture is not None:
        atomic_write(folder / "copies.png", to_png(Image.fromarray(picture)))
    atomic_write(folder / "report.md", markdown(report))
    write_json(folder / "report.json", report)


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report as lines of text."""
    own, images = report["membership"], report["images"]
    calibrated = ", calibrated by a reference model" if own["calibrated"] else ""
    whose = " in the teacher, all that a student learns from" if own["of_teacher"] else ""
    found = [
        f"membership{whose}: AUC {_interval(own, 'auc')}{calibrated}; at 1% false positives {_interval(own, 'tpr')} of "
        f"{images['members']} training images are found (0.5 and 0.01: nothing is to be told)",
        f"two halves of the held-out images: AUC {_interval(own['halves'], 'auc')} (0.5: the attack invents nothing)",
    ]
    for space, one in report["copies"].items():
        found.append(
            f"copies by {space}: {_interval(one, 'share')} of {images['samples']} samples ({one['held_out_share']:.2%} "
            f"of {images['held_out']} held-out images lie as near); nearest training image over its neighbours: "
            f"{one['ratio_median']:.3f}, of held-out images {one['held_out_ratio_median']:.3f}, of a copy below "
            f"{one['fence']:.3f}"
        )
    if images["held_out_in_train"]:
        found.append(f"{images['held_out_in_train']} held-out images are in the training data as well: set aside")
    if images["train"] < images["trained_on"]:
        found.append(f"{images['train']:,} of {images['trained_on']:,} training images were looked at")
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """The report to read."""
    text = ["# Audit", "", f"Model: {report['model'].get('name', '?')}. Intervals: 95%.", ""]
    text += [f"- {line}" for line in lines(report)]
    text += ["", "| noise over data | AUC | interval |", "| ---: | ---: | --- |"]
    for row in report["membership"]["levels"]:
        text.append(f"| {row['level']:g} | {row['auc']:.3f} | {row['low']:.3f} to {row['high']:.3f} |")
    if exposed := report.get("exposed"):
        text += ["", "Samples most like a training image:", ""]
        text += ["| sample | training image | over its neighbours | gray levels apart | copy |"]
        text += ["| ---: | --- | ---: | ---: | --- |"]
        for row in exposed["samples"][:TOLD]:
            how = " (mirrored)" * row["mirrored"] + f" (moved by {row['moved']})" * any(row["moved"])
            cells = (row["sample"], row["of"] + how, f"{row['ratio']:.3f}", f"{row['distance']:.1f}", row["copy"])
            text.append(f"| {' | '.join(map(str, cells))} |")
        text += ["", "Training images best known to the model:", ""]
        text += ["| training image | held-out images known as well |", "| --- | ---: |"]
        text += [f"| {row['of']} | {row['held_out_above']:.2%} |" for row in exposed["train"][:TOLD]]
    return "\n".join(text) + "\n"


def _interval(values: Mapping[str, float], name: str) -> str:
    prefix = "tpr_" if name == "tpr" else ""
    return f"{values[name]:.3f} [{values[f'{prefix}low']:.3f}, {values[f'{prefix}high']:.3f}]"
