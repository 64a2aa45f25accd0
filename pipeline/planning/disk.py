"""What a run leaves under `run.root`, to within a fifth: every kind of file that is written, not checkpoints alone.

Images are counted by storing a few of them elsewhere; curves, previews and the tracker's data base by what they take in
MLflow 3.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.files import SOURCE
from pipeline.schema.training import Training
from pipeline.stages.graph import Step

CHECKPOINT_BYTES = 12  # a parameter: master and two moments in fp32; 4 more an average (checkpoint.py)
SAMPLED = 16  # images that are stored to see what one takes
PREVIEW_IMAGES = 16  # in each preview's grid (tasks/)
GRIDS = 4 * 64 + 40  # images in evaluate's and ingest's pictures
PICTURE_COPIES = 3  # in the stage's spool, in its run and in the pipeline's
DATABASE, POINT_BYTES, POINT_NAMES = 1_000_000, 100, 16  # an empty data base; a point of a curve; curves, both runs'
EXTRACTOR = 2 * 360_000  # the classifier: in its pool and in the artifact


@dataclass(frozen=True)
class Disk:
    """Bytes at the end by use, and how many more while a checkpoint is written. None: not known yet."""

    checkpoints: float
    weights: float
    snapshots: float
    images: float | None
    latents: float | None
    model: float  # the registered one, and MLflow's copy of it and of the code
    tracker: float  # curves, previews, extractors
    more: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) or 0.0 for field in fields(self) if field.name != "more")

    def __str__(self) -> str:
        known = {
            "checkpoints": self.checkpoints,
            "weights": self.weights,
            "snapshots of averages": self.snapshots,
            "images": self.images,
            "latents": self.latents,
            "the registered model": self.model,
            "curves, previews and the tracker's data base": self.tracker,
        }
        parts = [f"{size(value)} {name}" for name, value in known.items() if value]
        unknown = " and ".join(name for name in ("images", "latents") if known[name] is None)
        return f"about {size(self.total)} at the end, {size(self.more)} more while it trains ({', '.join(parts)}" + (
            f"; {unknown} are not counted before ingest has seen them)" if unknown else ")"
        )


def size(value: float) -> str:
    """Bytes in words: three figures in MB, GB or TB (10^6, 10^9, 10^12 bytes)."""
    units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))
    unit, name = next((pair for pair in units if value >= 0.9995 * pair[0]), units[-1])
    return f"{value / unit:.3g} {name}"


def checkpoint(training: Training, parameters: int, opponents: int = 0) -> float:
    """Bytes of one checkpoint; `opponents`: parameters of a discriminator, which has no averages."""
    averages = len(training.half_lives) + len(training.average_lengths)
    return parameters * (CHECKPOINT_BYTES + 4.0 * averages) + opponents * CHECKPOINT_BYTES


def kept(sizes: dict[str, int], name: str) -> int:
    """Parameters of a stage that its checkpoints and weights hold: of an adapted network the adapters'."""
    return sizes.get("adapters", sizes[name]) if name == "diffusion" else sizes[name]


def checkpoints_kept(training: Training) -> tuple[int, int]:
    """Checkpoints that are there at the end, and that were written: one each `save_every` steps, at the last step, and
    where the learning rate begins to depend on the number of steps; that one stays beside the newest (loop.py)."""
    from pipeline.training.arithmetic import stable_steps

    stable, last = stable_steps(training), training.steps
    written = sorted({*range(training.save_every, last, training.save_every), *([stable] if stable else []), last})
    return len({*written[-training.keep :], *([stable] if stable else [])}), len(written)


def disk(config: Config, steps: Sequence[Step], sizes: dict[str, int], elements: int) -> Disk:
    """What is under the root when all stages have ended, whether they have run or not.

    sizes: parameters by network (`forecast.parameter_counts`); elements: of a latent. Reads the source's listing and a
    few of its images. A tracker elsewhere takes its data base and its copies there.
    """
    from pipeline.training.snapshots import count

    local = not (config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"))
    trained = ["diffusion"] if config.autoencoder.from_ else ["autoencoder", "diffusion"]
    checkpoints = weights = snapshots = tracker = 0.0
    largest, points, previews = 0.0, 0.0, 0
    for name in trained:
        training: Training = getattr(config, name).training
        each = checkpoint(training, kept(sizes, name), sizes.get("discriminator", 0) if name == "autoencoder" else 0)
        there, written = checkpoints_kept(training)
        checkpoints += each * there
        largest = max(largest, each if written > there else 0.0)
        averages = len(training.half_lives) + len(training.average_lengths)
        weights += 4.0 * kept(sizes, name) * (1 + averages)  # live, too
        snapshots += 4.0 * kept(sizes, name) * len(training.average_lengths) * count(training)
        points += training.steps / training.log_every * POINT_NAMES
        previews += -(-training.steps // training.preview_every)
    images, count_, each_image = _images(config, steps[0])
    picture = each_image or 0.7 * math.prod(config.data.sides) * config.data.channels
    copies = PICTURE_COPIES if local else 1
    tracker = points * POINT_BYTES * (2 if local else 1) + (DATABASE if local else 0)
    tracker += (previews * PREVIEW_IMAGES + GRIDS) * picture * copies
    if config.evaluate.extractor.kind == "classifier":
        tracker += EXTRACTOR
    model = 4.0 * (sizes["autoencoder"] + kept(sizes, "diffusion"))
    code = sum(file.stat().st_size for part in ("pipeline", "models") for file in (SOURCE / part).rglob("*.py"))
    latents = None if count_ is None else float(count_ * len(config.latents.views) * elements * 2 * 2)
    total = 2 * model + code if local else model
    return Disk(checkpoints, weights, snapshots, images, latents, total, tracker, largest)


def _images(config: Config, ingest: Step) -> tuple[float | None, int | None, float | None]:
    """Bytes that ingest leaves, number of images, bytes of one stored. None: not known before it has run."""
    from pipeline.past.inventory import size as folder_bytes

    remote = config.data.source.kind == "webdataset"  # read where they lie
    if ingest.artifact:
        count: Any = sum(ingest.artifact.summary["images"].values())
        there = float(folder_bytes(ingest.artifact.path))
        return there, count, None if remote else _member(ingest.artifact.summary["bytes"] / max(1, count))
    if remote:
        return None, None, None
    each, count = _stored(config)
    return each * count, count, _member(each)


def _member(stored: float) -> float:
    """Bytes of the picture alone of a sample in a tar: without headers, padding, label and its row of the index."""
    return max(1.0, stored - 3 * 512 - 256)


def _stored(config: Config) -> tuple[float, int]:
    """Bytes that a stored image takes with its share of the index, by storing some; and how many images there are."""
    from pipeline.data import sources
    from pipeline.data.write_shards import Plan, write_shard

    listing = sources.open_listing(config.data, sources.digests_folder_of(config.run.root))
    rows = listing.rows[:: max(1, len(listing.rows) // SAMPLED)][:SAMPLED]
    with tempfile.TemporaryDirectory(prefix="ldm-forecast-") as folder:
        (Path(folder) / "work").mkdir()
        write_shard(Plan("sample", 0, rows), config.data, listing.classes, Path(folder), Path(folder) / "work")
        written = sum(file.stat().st_size for file in Path(folder).glob("sample.*"))
    return written / len(rows), len(listing.rows)
