"""Files of clips that a model made: an animated WebP each, an MP4 beside it where PyAV is, strips of their frames, and
what made them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import video_files
from pipeline.data.pictures import Images, grid, strips
from pipeline.data.transforms import to_png
from pipeline.errors import UserError
from pipeline.files import atomic_write, sha256_file
from pipeline.generate.generator import Generator
from pipeline.generate.samples import GRID, Earlier, finish

SHOWN = 64  # clips in the grid of strips


def check(folder: Path, before: Earlier, of: Generator) -> None:
    """UserError where clips of this model cannot lie beside what is there: before any is made."""
    if not before.info:
        return
    if before.info["class_names"] != of.classes:
        raise UserError(f"--out {folder}: holds samples of a model with other classes; give a new folder")
    if not all(entry["file"].endswith(".webp") for entry in before.info["images"]):
        raise UserError(
            f"--out {folder}: holds samples that are no clips, and these are to be clips; give a new folder"
        )


def webp(frames: Images, rate: float) -> bytes:
    """The animated .webp file of frames [T, H, W, C] at so many a second, without loss; it starts again at its end.

    Times are whole milliseconds, each rounded from its own, so that they do not drift. A frame that is equal to the one
    before it is shown longer, which is how Pillow writes it."""
    from PIL import Image

    times = [round(1000 * k / rate) for k in range(len(frames) + 1)]
    images = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame).convert("RGB") for frame in frames]
    file = io.BytesIO()
    images[0].save(
        file,
        "WEBP",
        save_all=True,
        append_images=images[1:],
        duration=[b - a for a, b in pairwise(times)],
        loop=0,
        lossless=True,
        allow_mixed=False,
    )
    return file.getvalue()


def moving_grid(clips: Images, rate: float) -> bytes:
    """Clips [n, T, H, W, C] side by side, all moving: one animated .webp."""
    return webp(np.stack([grid(clips[:, k]) for k in range(clips.shape[1])]), rate)


def write_clips(folder: str | Path, clips: Images, info: Mapping[str, Any], before: Earlier, rate: float) -> None:
    """Write 000000.webp (and .mp4) ..., grid.png (strips of the first frames), and last samples.json, as for images;
    clips uint8 [n, T, H, W, C].

    info: as `samples.sample_info` gives it; before: what `samples.earlier` found in the folder, whose numbers go on."""
    from PIL import Image

    folder, files = Path(folder), []
    for number, clip in enumerate(clips, before.next):
        file = folder / f"{number:06d}.webp"
        atomic_write(file, webp(clip, rate))
        if video_files.there():
            atomic_write(file.with_suffix(".mp4"), video_files.mp4(clip, rate))
        files.append((file, sha256_file(file)))
    sheet = grid(strips(clips[:SHOWN]), columns=1)
    atomic_write(folder / (f"grid-{before.next:06d}.png" if before.info else GRID), to_png(Image.fromarray(sheet)))
    finish(folder, files, info, before)
