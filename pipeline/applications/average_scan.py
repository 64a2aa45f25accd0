"""`ldm average --scan`: the Fréchet distance of samples against the length of the average that made them.

Same noise, classes, real images and extractor in every row, so that rows differ by the weights alone. How averages are
made is in `averages.py`, what a distance is in `metrics/frechet.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import Artifact
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.generate import averages
from pipeline.past import lineage
from pipeline.schema.names import length_name
from pipeline.training import snapshots

if TYPE_CHECKING:
    from pipeline.evaluation.metrics.frechet import Figure


@dataclass(frozen=True)
class Row:
    """The distance of one set of weights; misfit: of the profile it was made by, None where it was kept in training."""

    weights: str
    figure: Figure
    misfit: float | None


def scan(diffusion: Artifact, config: Config, lengths: Sequence[str]) -> tuple[Figure, list[Row]]:
    """The distance between real images, and a row for each length and for the averages that the artifact holds.

    config: `data` and `evaluate` are used. Raises UserError where there are no snapshots or too few images.
    """
    import torch

    from pipeline.data.split import load_split
    from pipeline.evaluation import scores
    from pipeline.evaluation.extractors import extractor_of
    from pipeline.evaluation.metrics import frechet
    from pipeline.evaluation.shapes import native
    from pipeline.generate import adapters
    from pipeline.generate.folder import from_artifact

    if diffusion.stage != "diffusion":
        raise UserError(f"--scan: {diffusion.name} makes no samples; give an artifact of diffusion")
    kept = sorted(path.stem for path in diffusion.path.glob("*.safetensors"))
    names = kept + [name for part in lengths if (name := length_name(_number(part))) not in kept]
    for name in names:  # before an image is made: are there snapshots, do they reach?
        if name not in kept:
            averages.plan(diffusion.path / snapshots.FOLDER, _number(name.removeprefix("length-")))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = from_artifact(diffusion, device)
    made_of = diffusion.inputs["ingest"]
    data = Artifact.load(lineage.place(diffusion, made_of) or made_of["path"])
    splits = [load_split(data.path, split, config, config.evaluate.seed) for split in ("train", "val")]
    (train, labels), (held_out, _) = splits
    section = config.evaluate
    n = min(section.samples, len(held_out), len(train) // 2)
    extractor = extractor_of(config, data, lambda: (splits[0], splits[1]))
    shapes = native(data.path, config, 0)
    asked = scores.asked_classes(labels, section.samples, len(generator.classes)) if generator.classes else None
    real = extractor(held_out[:n])
    digest = scores.real_digest(train[:n], held_out[:n])

    def distance(features: frechet.Features) -> Figure:
        return frechet.figure(
            features[:n], real, extractor=extractor.digest, real=digest, resamples=section.bootstrap, seed=section.seed
        )

    rows = []
    try:
        baseline = distance(extractor(train[:n]))
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                path, misfit = diffusion.path / f"{name}.safetensors", None
                if name not in kept:
                    recipe = averages.plan(diffusion.path / snapshots.FOLDER, _number(name.removeprefix("length-")))
                    path, misfit = Path(folder) / "weights.safetensors", recipe.misfit
                    averages.make(recipe, path)
                adapters.load(generator.network, path, generator.options, generator.base)
                print(f"average: {name}", flush=True)
                rows.append(
                    Row(name, distance(extractor(scores.draw_samples(generator, asked, section, shapes)[0])), misfit)
                )
    except ValueError as error:
        raise UserError(f"--scan: {error}") from None
    return baseline, rows


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--lengths: {text!r} is no number; expected such as 0.05,0.1") from None


def table(found: tuple[Figure, list[Row]]) -> str:
    """The rows as markdown, verdict first. Two figures whose intervals overlap are not told apart."""
    real, rows = found
    best = min(rows, key=lambda row: row.figure.value)
    near = [row.weights for row in rows if row is not best and row.figure.interval[0] <= best.figure.interval[1]]
    same = f"; within its interval: {', '.join(near)}" if near else ", apart from all others"
    lines = [
        f"best: {best.weights}, Fréchet distance {best.figure.value:.4g} (real data: {real.value:.4g}, {real.images} "
        f"images a set, extractor {real.extractor[:12]}){same}",
        "",
        "| weights | Fréchet distance | 95% interval | misfit of the profile |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = row.figure.interval
        misfit = "kept in training" if row.misfit is None else f"{row.misfit:.1e}"
        lines.append(f"| {row.weights} | {row.figure.value:.4g} | {low:.4g} to {high:.4g} | {misfit} |")
    return "\n".join(lines)
