"""`ldm augment`: labelled images that a model makes, for the training of something else, as WebDataset tars.

    asked.json             first: what was asked (`made_images.py`)
    generated-C-N.tar      shard N of class C: KEY.png, KEY.cls, KEY.json with the mark (`data/generated.py`)
    real-N.tar             with `real`: DATA's own images, without the mark
    classes.json           names of the classes, for ingest
    manifest.json          what each shard holds, and the filter; a shard that it does not name is made again

Only samples go in whose confidence (`evaluation/confidence.py`) in the class asked for is high enough. Noise is drawn
by class, shard and number, so a shard's bytes depend on no other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.applications import made_images
from pipeline.applications.edit import request_of
from pipeline.applications.labelled import Labelled
from pipeline.data import shards
from pipeline.data.generated import MARK
from pipeline.data.pictures import Images, grid
from pipeline.data.transforms import to_png
from pipeline.errors import UserError
from pipeline.evaluation import confidence
from pipeline.evaluation.confidence import Confidence
from pipeline.files import atomic_path, read_json, sha256_file, write_json
from pipeline.generate import told
from pipeline.generate.generator import Generator

MANIFEST, CLASSES = "manifest.json", "classes.json"
SHARD = 500  # images of a shard, at most
MOST_DRAWN = 10  # draws for each image that is asked for; then a shard stays as it is
SHOWN = 8  # images of a class in grid.png


@dataclass(frozen=True)
class Job:
    """What is drawn. by: the column whose values are asked for, None for the class. how: as of `Generator.sample`."""

    model: Generator
    real: Labelled
    by: str | None
    per_class: int
    seed: int
    how: Mapping[str, Any]

    @property
    def told(self) -> str:
        """How the model calls what is asked for."""
        return self.by or "class"

    @property
    def column(self) -> str:
        """How images' columns call it."""
        return column_of(self.model, self.by)

    @property
    def numbers(self) -> np.ndarray[Any, Any]:
        """Of each real image the number of its class, int64 [n]."""
        number = {value: i for i, value in enumerate(self.real.classes)}
        return np.array([number[value] for value in self.real.values], np.int64)


def column_of(model: Generator, by: str | None) -> str:
    """The column of the data that is the model's attribute `by`, `class` for None. UserError for a model that is told
    no such thing, and for an attribute that has no values of several."""
    known = model.options["condition"].get("attributes", {})
    if by is None:
        if not model.classes:
            there = ", ".join(name for name, own in known.items() if own["kind"] == "categorical")
            raise UserError(
                f"augment: this model is told no class; {f'--by {there}' if there else 'it cannot be asked'}"
            )
        return "class"
    if by not in known or known[by]["kind"] != "categorical":
        there = ", ".join(name for name, own in known.items() if own["kind"] == "categorical") or "none"
        raise UserError(f"--by {by}: no attribute of this model with one of several values; there are: {there}")
    return str(known[by].get("column", by))


def shape_of(model: Generator) -> tuple[int, int, int]:
    """Height, width and channels of the model's images. UserError for one that makes no squares."""
    height, width = model.shapes[0]
    if height != width:
        raise UserError(f"augment: this model makes images of {height}x{width} pixels; only squares are judged")
    return height, width, model.channels


def requests(job: Job) -> list[dict[str, Any]]:
    """The request of a batch of each class, checked."""
    condition = job.model.options["condition"]
    others = [name for name in told.names(job.model.options) if name != job.told]
    if others and not condition.get("drop"):
        raise UserError(
            f"augment: this model knows no image that is told its {job.told} alone (`condition.drop` 0, and it is told "
            f"{', '.join(others)} as well); give another"
        )
    size = job.how.get("batch_size") or job.model.defaults["batch_size"]
    return [request_of(job.model, {job.told: value}, size, seed=job.seed, **job.how) for value in job.real.classes]


def augment(job: Job, sure: Confidence, out: Path, about: Mapping[str, Any], real: bool) -> dict[str, Any]:
    """Write all that is missing to `out`; returns what manifest.json holds. about: what the folder is marked by, its
    digest is in the keys. real: whether DATA's images are written as well."""
    manifest = _begun(out / MANIFEST)
    done: dict[str, Any] = manifest.get("shards", {})
    manifest = {**about, MARK: True, "filter": sure.facts, "classes": job.real.classes, "shards": done}
    if job.by is None:
        write_json(out / CLASSES, job.real.classes)
    for number, request in enumerate(requests(job)):
        for part, first in enumerate(range(0, job.per_class, SHARD)):
            name, count = f"generated-{number:04d}-{part:03d}", min(SHARD, job.per_class - first)
            if _whole(out, name, done):
                continue
            entry = _drawn(job, sure, request, number, part, count, out / f"{name}.tar")
            done[name] = {"value": job.real.classes[number], **entry}
            write_json(out / MANIFEST, manifest)
            said = f"{entry['passed']} of {entry['drawn']} drawn pass, {entry['images']} are taken"
            print(f"augment: {job.real.classes[number]}: {said}", flush=True)
    for part, first in enumerate(range(0, len(job.real.values) if real else 0, SHARD)):
        if not _whole(out, name := f"real-{part:05d}", done):
            done[name] = _real(job, range(first, min(first + SHARD, len(job.real.values))), out / f"{name}.tar")
            write_json(out / MANIFEST, manifest)
    if not (out / made_images.GRID).is_file():
        _show(job, out, done)
    write_json(out / MANIFEST, {**manifest, "finished": True})
    return manifest


def _begun(path: Path) -> dict[str, Any]:
    """The manifest of a call that was killed; empty where there is nothing sound."""
    try:
        return dict(read_json(path))
    except (FileNotFoundError, ValueError):
        return {}


def _whole(out: Path, name: str, done: Mapping[str, Any]) -> bool:
    """Whether a shard is there as the manifest has it."""
    tar = out / f"{name}.tar"
    return name in done and (not done[name]["images"] or (tar.is_file() and sha256_file(tar) == done[name]["sha256"]))


def _drawn(
    job: Job, sure: Confidence, request: dict[str, Any], number: int, part: int, count: int, tar: Path
) -> dict[str, Any]:
    """Draw one shard of a class, `count` images that pass; fewer where MOST_DRAWN draws for each are not enough, and no
    tar where none passes."""
    size, most = request["batch_size"], MOST_DRAWN * count
    place = (number << 20) + part  # of the class and the shard among all; each has numbers of noise of its own
    taken: list[tuple[int, Images, float]] = []
    drawn, passing = 0, 0
    while len(taken) < count and drawn < most:
        first = place * MOST_DRAWN * 2 * SHARD + drawn
        images = job.model.images(request, first)
        drawn += size
        values = sure.of(images, number)
        passed = np.flatnonzero(values >= sure.least)
        passing += len(passed)
        taken += [(first + int(i), images[i], float(values[i])) for i in passed]
    taken = taken[:count]
    entry = {"images": len(taken), "passed": passing, "drawn": drawn}
    if not taken:
        return entry
    lineage = job.model.about.get("lineage", {}).get("diffusion", {})
    weights = job.model.about.get("weights", {})
    content = lineage.get("content") or weights.get("denoiser.safetensors")
    value = job.real.classes[number]
    with atomic_path(tar) as temporary, open(temporary, "wb") as file:
        writer = shards.TarWriter(file)
        for at, pixels, sureness in taken:
            about = {MARK: True, "model": job.model.about.get("name"), "content": content, "seed": job.seed,
                     "number": at, job.column: value, "confidence": round(sureness, 4)}  # fmt: skip
            _add(writer, f"generated/{str(content)[:8]}-{job.seed}-{at}", pixels, None if job.by else number, about)
        writer.close()
    return {**entry, "sha256": sha256_file(tar)}


def _real(job: Job, rows: range, tar: Path) -> dict[str, Any]:
    """Write some of the real images, at the model's size, without the mark."""
    with atomic_path(tar) as temporary, open(temporary, "wb") as file:
        writer = shards.TarWriter(file)
        for i in rows:
            label = None if job.by else int(job.numbers[i])
            _add(writer, shards.safe_key(job.real.keys[i]), job.real.images[i], label, job.real.metas[i])
        writer.close()
    return {"images": len(rows), "sha256": sha256_file(tar)}


def _add(writer: shards.TarWriter, key: str, pixels: Images, label: int | None, about: Mapping[str, Any]) -> None:
    writer.add(f"{key}.png", to_png(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)))
    if label is not None:
        writer.add(f"{key}.cls", str(label).encode())
    if about:
        writer.add(f"{key}.json", json.dumps(about, sort_keys=True, ensure_ascii=False).encode())


def _show(job: Job, out: Path, done: Mapping[str, Any]) -> None:
    """grid.png: a row a class, real images, then generated ones."""
    from io import BytesIO

    shape = job.real.images.shape[1:]
    cells: Images = np.full((len(job.real.classes), 2 * SHOWN, *shape), 255, np.uint8)
    for number, value in enumerate(job.real.classes):
        own = [i for i, other in enumerate(job.real.values) if other == value][:SHOWN]
        cells[number, : len(own)] = job.real.images[own]
        name = f"generated-{number:04d}-000"
        if done[name]["images"]:
            with open(out / f"{name}.tar", "rb") as file:
                members = [m for m in shards.scan(out / f"{name}.tar") if m.name.endswith(".png")][:SHOWN]
                for place, member in enumerate(members):
                    file.seek(member.offset)
                    pixels = np.asarray(Image.open(BytesIO(file.read(member.length))))
                    cells[number, SHOWN + place] = pixels.reshape(shape)
    made_images.put(out / made_images.GRID, grid(cells.reshape(-1, *shape), columns=2 * SHOWN))


def check(job: Job, least: float | None, share: float) -> None:
    """UserError for what cannot be drawn, and where no filter can be fitted."""
    requests(job)
    confidence.check(job.numbers, job.real.classes, least, share)


def fit(job: Job, pool: Path, **how: Any) -> Confidence:
    """The filter, on the real images; how: as of `confidence.fit`."""
    return confidence.fit(job.real.images, job.numbers, job.real.classes, pool, seed=job.seed, **how)
