"""What a verb makes of a user's images, on disk: a PNG of each and each way, all side by side, and what made them.

    asked.json   written first: the model with its weights' checksums, what was asked, the checksums of what was given
    NAME.png     or NAME-WAY.png where there are several ways; whole or not there
    grid.png     last: a row an image

A call that was killed goes on with what is missing; another call into the same folder is refused. So it is with the one
file of a verb that writes a single one, which holds what was asked itself (`written`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.data.pictures import Images, grid
from pipeline.data.transforms import to_png
from pipeline.errors import UserError
from pipeline.files import atomic_write, canonical_json, make_folder, read_json, sha256_file, write_json
from pipeline.generate.generator import Generator

ASKED, GRID = "asked.json", "grid.png"
CELL = 256  # pixels: the longer side of an image in grid.png, at most


def begin(folder: Path, model: Generator, files: Sequence[Path], how: Mapping[str, Any]) -> None:
    """Say in the folder what is to be made. UserError where it holds something else, and for a model of other images
    than 8 bits of gray or RGB, which is what these verbs read and write."""
    model.pictures_only("this command")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: is a file; give a folder")
    given = [{"file": str(file), "sha256": sha256_file(file)} for file in files]
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    asked = {"model": model.about, "how": dict(how), "given": given, "versions": versions}
    there = [file for file in folder.iterdir() if file.suffix != ".tmp"] if folder.exists() else []
    if there != [folder / ASKED] and there and _read(folder / ASKED) != asked:
        raise UserError(f"--out {folder}: holds something else than this call makes; give a new folder")
    make_folder(folder)
    write_json(folder / ASKED, asked)


def _read(file: Path) -> Any:
    """What a call has said; None where there is nothing sound."""
    try:
        return read_json(file)
    except (FileNotFoundError, ValueError):
        return None


def written(out: Path, asked: Any, said: Callable[[Path], Any]) -> bool:
    """Of a verb that writes one file: whether it is there and was made of what is `asked` now, by what it says of
    itself (`said`). UserError where it is something else, and where none can be written."""
    if not out.exists():
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=out.parent).close()  # whoever we are, and whatever is mounted there
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written ({error.strerror}); give another path") from None
        return False
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; give a file")
    if said(out) != json.loads(canonical_json(asked)):
        raise UserError(f"--out {out}: holds something else than this call makes; give a new file")
    return True


def place(folder: Path, file: Path, way: str | None) -> Path:
    """Where the image goes that is made of a file, in one of several ways."""
    return folder / (f"{file.stem}.png" if way is None else f"{file.stem}-{way}.png")


def missing(folder: Path, files: Sequence[Path], ways: Sequence[str | None]) -> bool:
    """Whether any image of these files is not there yet."""
    return not all(place(folder, file, way).is_file() for file in files for way in ways)


def put(path: Path, image: np.ndarray[Any, Any]) -> None:
    """Write an image, uint8 [H, W, 1] or [H, W, 3], whole or not at all."""
    atomic_write(path, to_png(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)))


def cell(image: Images) -> Images:
    """An image uint8 [H, W, C] as grid.png shows it: at most CELL pixels a side."""
    if max(image.shape[:2]) <= CELL:
        return image
    small = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    small.thumbnail((CELL, CELL))
    pixels = np.asarray(small)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def finish(folder: Path, files: Sequence[Path], ways: Sequence[str | None], before: Sequence[Sequence[Any]]) -> None:
    """Write grid.png: of each file what `cell` made of the images `before`, then of what was made of it; smaller ones
    in the upper left corner of a cell."""
    rows: list[Images] = []
    for file, shown in zip(files, before, strict=True):
        made = []
        for way in ways:
            with Image.open(place(folder, file, way)) as opened:
                made.append(cell(np.asarray(opened.convert("RGB"))))
        rows += [*shown, *made]
    height, width = (max(image.shape[axis] for image in rows) for axis in (0, 1))
    cells: Images = np.full((len(rows), height, width, 3), 255, np.uint8)
    for free, image in zip(cells, rows, strict=True):
        free[: image.shape[0], : image.shape[1]] = image  # gray is repeated into RGB
    put(folder / GRID, grid(cells, columns=len(rows) // len(files)))
