"""What `ldm why` writes: of each sample its picture, what explains it, and the figures; then all of them together.

000000.png           the sample; 000000-guidance.png, -words.png, -nearest.png: what explains it
000000.json          its figures, last: a sample that has this is whole
guidance.png ...     all samples under each other, SHOWN at most
why.json             all figures, and means over samples, last
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.applications import made_images
from pipeline.applications.why import Why
from pipeline.applications.why_pictures import under
from pipeline.errors import many
from pipeline.files import read_json, write_json

ALL = "why.json"
SHOWN = 16  # samples in a picture of all


def place(folder: Path, number: int, ending: str) -> Path:
    """A file of a sample."""
    return folder / f"{number:06d}{ending}"


def missing(folder: Path, count: int, shows: Collection[str], batch: int) -> list[range]:
    """The numbers of samples that are not all there yet, in batches as they are made."""
    endings = (".json", ".png", *(f"-{show}.png" for show in shows))
    batches = [range(begin, min(begin + batch, count)) for begin in range(0, count, batch)]
    return [rows for rows in batches if not all(place(folder, i, end).is_file() for i in rows for end in endings)]


def put(folder: Path, one: Why) -> None:
    """Write a sample and what explains it, its figures last."""
    number = one.facts["number"]
    made_images.put(place(folder, number, ".png"), one.image)
    for show, picture in one.pictures.items():
        made_images.put(place(folder, number, f"-{show}.png"), picture)
    write_json(place(folder, number, ".json"), one.facts)


def finish(folder: Path, count: int, shows: Collection[str]) -> None:
    """Write the pictures of all samples, and why.json."""
    for show in shows:
        sheets = []
        for number in range(min(count, SHOWN)):
            with Image.open(place(folder, number, f"-{show}.png")) as opened:
                sheets.append(np.asarray(opened.convert("RGB")))
        made_images.put(folder / f"{show}.png", under(sheets))
    facts = [read_json(place(folder, number, ".json")) for number in range(count)]
    write_json(folder / ALL, {"means": means(facts), "samples": facts})


def means(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Over samples: of guidance difference and share by noise level; of words how much and where
    places look at them, and what they change."""
    found: dict[str, Any] = {}
    if "guidance" in facts[0]:
        several = [one["guidance"] for one in facts]
        found["guidance"] = {
            "levels": several[0]["levels"],
            "together": _mean([one["together"] for one in several]),
            "each": {name: _mean([one["each"][name] for one in several]) for name in several[0]["each"]},
        }
    if "words" in facts[0]:
        by_word: dict[str, list[dict[str, Any]]] = {}
        for one in facts:
            for word in one["words"]["of"]:
                by_word.setdefault(word["word"].lower(), []).append(word)
        found["words"] = {
            word: {"times": len(same), **{what: _mean([one[what] for one in same]) for what in ("looks", "changes")}}
            for word, same in by_word.items()
        }
    return found


def _mean(figures: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: np.mean([one[key] for one in figures], 0).tolist() for key in figures[0]}


def lines(folder: Path) -> list[str]:
    """What was found, for people."""
    written = read_json(folder / ALL)
    found = written["means"]
    said = [f"{many(len(written['samples']), 'sample')} explained in {folder}, figures in {ALL}"]
    if "guidance" in found:
        of = found["guidance"]
        most = max(range(len(of["levels"])), key=lambda i: of["together"]["difference"][i])
        early = sum(s for level, s in zip(of["levels"], of["together"]["share"], strict=True) if level > 0.5)
        said.append(
            f"guidance: {early:.0%} of the difference in steps above noise 0.5, most at {of['levels'][most]:.2f}"
        )
    for one in written["samples"][: SHOWN if "nearest" in written["samples"][0] else 0]:
        near = one["nearest"]["pixels"][0]
        said.append(f"{one['number']:06d}: nearest is {near['key']}, {near['distance']:.1f} gray levels away")
    return said
