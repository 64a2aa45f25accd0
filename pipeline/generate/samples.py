"""Files of samples: the images, a grid of them, and what made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.pictures import Images, grid
from pipeline.errors import UserError
from pipeline.files import atomic_write, sha256_file, write_json
from pipeline.generate.generator import Generator, class_number


def write_samples(folder: str | Path, images: Images, info: Mapping[str, Any]) -> Path:
    """Write 000000.png ..., grid.png, and last samples.json (info, and each file's class and checksum).

    `info` is `sample_info(...)`. A folder that holds samples already is a UserError: two sets would mix.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; give a new folder for the samples")
    names, entries = info["class_names"], []
    labels = [class_number(value, names) for value in info["request"]["classes"]]
    for i, image in enumerate(images):
        file = folder / f"{i:06d}.png"
        _write_png(file, image)
        chosen = labels[i % len(labels)] if labels else None
        entries.append({"file": file.name, "index": i, "class": chosen, "sha256": sha256_file(file)})
    _write_png(folder / "grid.png", grid(images))
    write_json(folder / "samples.json", {**info, "images": entries})
    return folder


def _write_png(path: Path, image: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """image: uint8 [H, W, 1] or [H, W, 3]."""
    from PIL import Image

    from pipeline.data.transforms import to_png

    atomic_write(path, to_png(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)))


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
