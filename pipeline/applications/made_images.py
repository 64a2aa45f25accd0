"""What is made of a user's images, on disk: a PNG of each by way, all of them side by side, and last what made them.

A folder that a call was killed in holds whole files only. The same call again makes them anew, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.data.pictures import Images, grid
from pipeline.data.transforms import to_png
from pipeline.errors import UserError
from pipeline.files import atomic_write, read_json, sha256_file, write_json
from pipeline.generate.generator import Generator

INFO, GRID = "made.json", "grid.png"


def check_out(folder: Path) -> None:
    """UserError for a folder that holds something else: before anything is made."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: is a file; give a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    known = read_json(folder / INFO) if (folder / INFO).is_file() else {}
    if not isinstance(known, dict) or "made" not in known:
        raise UserError(f"--out {folder}: not an empty folder; give a new one")


def write(
    folder: Path,
    files: Sequence[Path],
    images: Images,
    model: Generator,
    columns: Mapping[str, Images],
    how: Mapping[str, Any],
) -> None:
    """Write NAME.png, or NAME-COLUMN.png where there are several, of each of `files` and their `images` [n, H, W, C].

    grid.png: a row a file: the image, what the autoencoder alone makes of it, the columns. made.json: the model with
    its weights' checksums, `how`, and the checksums of what was given and made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for column, results in columns.items():
        for file, result in zip(files, results, strict=True):
            name = f"{file.stem}-{column}.png" if len(columns) > 1 else f"{file.stem}.png"
            _write(folder / name, result)
            made.append({"file": name, "of": str(file), "column": column, "sha256": sha256_file(folder / name)})
    plain = model.decode(model.encode(images))
    rows = np.stack([images, plain, *columns.values()], axis=1).reshape(-1, *images.shape[1:])
    _write(folder / GRID, grid(rows, columns=len(columns) + 2))
    given = [{"file": str(file), "sha256": sha256_file(file)} for file in files]
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    write_json(
        folder / INFO, {"model": model.about, "how": dict(how), "given": given, "made": made, "versions": versions}
    )


def _write(path: Path, image: np.ndarray[Any, Any]) -> None:
    """image: uint8 [H, W, 1] or [H, W, 3]."""
    atomic_write(path, to_png(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)))
