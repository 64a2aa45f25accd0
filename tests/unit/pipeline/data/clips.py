"""Clips for tests: frames that tell which they are, files of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.schema.data import Data

TONE = 10  # of frame k: k * TONE in all pixels, so that each says which it is


def frames(count: int, side: int = 16, first: int = 0, noise: int = 0) -> np.ndarray:
    """uint8 [T, side, side, 3], each of one tone; noise: seed of a pattern of its own, 0: none."""
    made = np.zeros((count, side, side, 3), np.uint8)
    made += (np.arange(first, first + count, dtype=np.uint8) * TONE)[:, None, None, None]
    return made if not noise else made ^ np.random.default_rng(noise).integers(0, 64, (side, side, 3), np.uint8)


def animation(path: Path, pictures: np.ndarray, duration: int | list[int] = 100, **more: Any) -> bytes:
    """Write .webp (lossless), .gif or .apng of frames [T, H, W, 3 or 4], shown for so many ms; the file's bytes."""
    kind = {"webp": "WEBP", "gif": "GIF", "apng": "PNG"}[path.suffix[1:]]
    how: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    images = [Image.fromarray(frame) for frame in pictures]
    file = io.BytesIO()
    images[0].save(file, kind, save_all=True, append_images=images[1:], duration=duration, loop=0, **how, **more)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())
    return file.getvalue()


def data(path: Path, frames: int = 3, rate: float = 10, size: int = 16, **more: Any) -> Data:
    clip = {"frames": frames, "rate": rate, **more.pop("clip", {})}
    source = {"kind": "clips", "path": str(path), **more.pop("source", {})}
    return Data.model_validate({"source": source, "size": size, "clip": clip, **more})
