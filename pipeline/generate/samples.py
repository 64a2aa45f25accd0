"""Files of samples: the images, a grid of them, and what made them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.pictures import Images, grid
from pipeline.data.tiff_files import read_tiff, write_tiff
from pipeline.data.value_map import ValueMap
from pipeline.errors import UserError, many
from pipeline.files import atomic_write, read_json, sha256_file, write_json
from pipeline.generate.class_numbers import class_number
from pipeline.generate.generator import Generator
from pipeline.generate.prompts import said
from pipeline.generate.told import part

INFO, GRID = "samples.json", "grid.png"


@dataclass(frozen=True)
class Earlier:
    """What a folder holds already. info: its samples.json, empty where it has none; next: the first free number."""

    info: dict[str, Any] = field(default_factory=dict)
    next: int = 0

    def check(self, folder: Path, of: Generator, shape: tuple[int, int]) -> None:
        """UserError where images [height, width] of this model cannot lie beside those: before any is made."""
        if not self.info:
            return
        if self.info["class_names"] != of.classes:
            raise UserError(f"--out {folder}: holds samples of a model with other classes; give a new folder")
        if self.info["images"]:
            first = self.info["images"][0]["file"]
            if other := {".wav": "sounds", ".webp": "clips"}.get(Path(first).suffix):
                raise UserError(f"--out {folder}: holds {other}, and these are to be images; give a new folder")
            if first.endswith(".tif") != (of.values is not None):
                raise UserError(f"--out {folder}: holds samples of another depth; give a new folder")
            height, width = _read(folder / first).shape[:2]
            if (height, width) != shape:
                raise UserError(
                    f"--out {folder}: holds samples of {height}x{width} pixels, and these are to be "
                    f"{shape[0]}x{shape[1]}, which make no grid; give a new folder"
                )


def earlier(folder: Path, add: bool) -> Earlier:
    """What is in the folder that samples are to go to. UserError where it may not be added to: two sets would mix.

    Images that samples.json lists and that are gone are said, and left out from now on.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return Earlier()
    if not folder.is_dir() or not add:
        more = "" if not folder.is_dir() else ", or --add, which numbers on and overwrites nothing"
        raise UserError(f"--out {folder}: not an empty folder; give a new folder for the samples{more}")
    if not (folder / INFO).is_file():
        if (folder / GRID).exists():
            raise UserError(f"--out {folder}: its {GRID} is none of `ldm sample` (no {INFO}); give a new folder")
        return Earlier(next=_next(folder))
    try:
        info = read_json(folder / INFO)
        entries = [entry for entry in info["images"] if (folder / entry["file"]).is_file()]
        lost, info["class_names"] = len(info["images"]) - len(entries), info["class_names"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / INFO}: is not what `ldm sample` writes; give a new folder") from None
    if lost:
        print(f"{folder}: {many(lost, 'image')} gone that {INFO} lists; it lists only what is there", flush=True)
    return Earlier(
        {**info, "images": entries}, max(_next(folder), 1 + max((e["index"] for e in info["images"]), default=-1))
    )


def _next(folder: Path) -> int:
    """One more than the highest number that a file is named by, whoever made it."""
    return 1 + max((int(p.stem) for p in folder.iterdir() if re.fullmatch(r"\d{6,}", p.stem)), default=-1)


def write_samples(
    folder: str | Path,
    images: Images,
    info: Mapping[str, Any],
    before: Earlier | None = None,
    values: ValueMap | None = None,
) -> Path:
    """Write 000000.png ..., grid.png, and last samples.json (info, and each file's class and checksum).

    values: of images that are not 8 bits of gray or RGB; these are written as 000000.tif ..., in their own depth.

    `info` is `sample_info(...)`. before: what `earlier` found in the folder. The numbers go on from it (images are
    those of their numbers, `Generator.images(first=)`), the grid shows all, samples.json keeps an entry for each and
    the `info` of every set that was added under "added", with its first number.
    """
    folder = Path(folder)
    before = before or earlier(folder, add=False)
    files = []
    old = [_read(folder / entry["file"]) for entry in before.info.get("images", [])]
    if any(image.shape != images[0].shape for image in old):
        raise UserError(f"--out {folder}: holds samples of another shape; give a new folder")
    for number, image in enumerate(images, before.next):
        file = folder / f"{number:06d}.{'tif' if values else 'png'}"
        if values:
            write_tiff(file, image, values.unit)
        else:
            write_png(file, image)
        files.append((file, sha256_file(file)))
    every = np.stack([*old, *images])
    write_png(folder / GRID, grid(values.shown(every) if values else every))
    finish(folder, files, info, before)
    return folder


def finish(folder: Path, files: Sequence[tuple[Path, str]], info: Mapping[str, Any], before: Earlier) -> None:
    """Write samples.json: an entry for each file (with its SHA-256) after those that were there before."""
    names, entries, first = info["class_names"], [], before.next
    labels = [class_number(value, names) for value in info["request"]["classes"]]
    for i, (file, sha256) in enumerate(files):
        chosen = labels[i % len(labels)] if labels else None
        told = part(info["request"], [i])
        prompt = {"prompt": said(told["prompts"][0])} if "prompts" in told else {}
        known = {name: values[0] for name, values in told.get("attributes", {}).items()}
        about = {"class": chosen, **prompt, **({"attributes": known} if known else {})}
        entries.append({"file": file.name, "index": first + i, **about, "sha256": sha256})
    if before.info:
        added = [*before.info.get("added", []), {**info, "first": first}]
        written = {**before.info, "added": added, "images": [*before.info["images"], *entries]}
    else:
        written = {**info, **({"first": first} if first else {}), "images": entries}
    write_json(folder / INFO, written)


def write_png(path: Path, image: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """image: uint8 [H, W, 1] or [H, W, 3]."""
    from PIL import Image

    from pipeline.data.transforms import to_png

    atomic_write(path, to_png(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)))


def _read(path: Path) -> Images:
    """[H, W, C] of a file that `write_png` or `write_tiff` wrote. UserError where it cannot be read."""
    return read_tiff(path) if path.suffix == ".tif" else read_png(path)


def read_png(path: Path) -> Images:
    """uint8 [H, W, 1 or 3] of a file that `write_png` wrote. UserError where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it, or give a new folder for the samples") from None
    return values[..., None] if values.ndim == 2 else values


def sample_info(of: Generator, request: Mapping[str, Any]) -> dict[str, Any]:
    """What made a set of samples: the model with its weights' checksums, the request, the versions."""
    names = of.classes
    unlike = any(class_number(i, names) != i for i in range(len(names)))  # numbers that are names of other classes
    classes = [names[i] for i in request["classes"]] if unlike else request["classes"]
    return {
        "model": of.about,
        "request": {**request, "classes": classes},
        "class_names": of.classes,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "device": str(of.device),
    }
