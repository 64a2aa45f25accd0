"""Files of texts that a model made: one each, all of them in samples.jsonl, and what made them in samples.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import atomic_write, sha256_file
from pipeline.generate.class_numbers import class_number
from pipeline.generate.generator import Generator
from pipeline.generate.prompts import said
from pipeline.generate.samples import Earlier, finish

ALL = "samples.jsonl"


def check(folder: Path, before: Earlier, of: Generator) -> None:
    """UserError where texts of this model cannot lie beside what is there: before any is made."""
    if not before.info:
        return
    if before.info["class_names"] != of.classes:
        raise UserError(f"--out {folder}: holds samples of a model with other classes; give a new folder")
    if not all(entry["file"].endswith(".txt") for entry in before.info["images"]):
        raise UserError(f"--out {folder}: holds images, and these are to be texts; give a new folder")


def headings(of: Generator, request: Mapping[str, Any]) -> list[str]:
    """Of each text of a request what it was told, for people: its class, the text before; empty where nothing."""
    labels = [of.classes[label] for label in request["classes"]] or [""]
    before = [said(prompt) for prompt in request.get("prompts", [])] or [""]
    pairs = [(labels[i % len(labels)], before[i % len(before)]) for i in range(request["n"])]
    return [": ".join(part for part in pair if part) for pair in pairs]


def write_texts(folder: str | Path, texts: Sequence[str], info: Mapping[str, Any], before: Earlier) -> None:
    """Write 000000.txt ..., samples.jsonl (file, text, class, text before, seed of each), and last samples.json, as for
    images.

    info: as `samples.sample_info` gives it; before: what `samples.earlier` found in the folder, whose numbers go on.
    """
    folder, names, request = Path(folder), info["class_names"], info["request"]
    labels = [names[class_number(value, names)] for value in request["classes"]]
    prompts = [said(prompt) for prompt in request.get("prompts", [])]
    files, lines = [], []
    for i, text in enumerate(texts):
        file = folder / f"{before.next + i:06d}.txt"
        atomic_write(file, f"{text}\n")
        files.append((file, sha256_file(file)))
        told = {"class": labels[i % len(labels)]} if labels else {}
        told |= {"before": prompts[i % len(prompts)]} if prompts else {}
        lines.append({"file": file.name, "text": text, **told, "seed": request["seed"]})
    old = (folder / ALL).read_text(encoding="utf-8") if (folder / ALL).exists() else ""
    atomic_write(folder / ALL, old + "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    finish(folder, files, info, before)
