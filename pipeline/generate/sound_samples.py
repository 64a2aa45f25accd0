"""Files of sounds that a model made: one .wav each with the picture of its spectrogram, all of these in grid.png, and
what made them in samples.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.pictures import grid
from pipeline.data.waves import to_wav
from pipeline.errors import UserError
from pipeline.files import atomic_write, sha256_file
from pipeline.generate.generator import Generator
from pipeline.generate.samples import GRID, Earlier, finish, read_png, write_png

Array = np.ndarray[Any, np.dtype[Any]]


def check(folder: Path, before: Earlier, of: Generator) -> None:
    """UserError where sounds of this model cannot lie beside what is there: before any is made."""
    if not before.info:
        return
    if before.info["class_names"] != of.classes:
        raise UserError(f"--out {folder}: holds samples of a model with other classes; give a new folder")
    entries = before.info["images"]
    if not all(entry["file"].endswith(".wav") for entry in entries):
        raise UserError(f"--out {folder}: holds other samples, and these are to be sounds; give a new folder")
    if entries and read_png((folder / entries[0]["file"]).with_suffix(".png")).shape[:2] != of.shapes[0]:
        raise UserError(f"--out {folder}: holds sounds with spectrograms of another shape; give a new folder")


def wav_of(wave: Array, of: Generator) -> bytes:
    """The .wav file of a sound float32 [C, n], of the type and rate that the model's data say. One that would be cut at
    full scale is made quieter."""
    scaled = np.asarray(wave / max(1.0, float(np.abs(wave).max())), np.float32).T  # [n, C]
    assert of.sound is not None
    kept = np.rint(scaled * 32767).astype(np.int16) if of.sound.dtype == "int16" else scaled
    return to_wav(kept, of.sound.rate)


def write_sounds(folder: Path, images: Array, info: Mapping[str, Any], before: Earlier, of: Generator) -> None:
    """Write 000000.wav and 000000.png ..., grid.png, and last samples.json, as for images.

    images: spectrograms [n, mels, frames, C], as `Generator.images` gives them. info: as `samples.sample_info` gives
    it; before: what `samples.earlier` found in the folder, whose numbers go on.
    """
    pictures = of.shown(images)
    waves = of.waves(images)
    files = []
    for number, (wave, picture) in enumerate(zip(waves, pictures, strict=True), before.next):
        file = folder / f"{number:06d}.wav"
        atomic_write(file, wav_of(wave, of))
        write_png(file.with_suffix(".png"), picture)
        files.append((file, sha256_file(file)))
    old = [read_png((folder / entry["file"]).with_suffix(".png")) for entry in before.info.get("images", [])]
    write_png(folder / GRID, grid(np.stack([*old, *pictures])))
    finish(folder, files, info, before)
