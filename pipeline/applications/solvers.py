"""Which solver, with which grid of times and how many steps: measured on a trained model, against held-out images.

Every combination samples the same classes from the same noise, so that differences are due to the solver. Distances,
intervals and extractor are those of the evaluate stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts import Artifact, Store
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import atomic_write, digest, read_json, write_json

if TYPE_CHECKING:
    from pipeline.evaluation.metrics.frechet import Figure
    from pipeline.generate.generator import Generator

STEPS = 10  # of the verdict: few enough to be a question

Images = np.ndarray[Any, np.dtype[np.uint8]]
Score = Callable[[Images], "Figure"]


@dataclass(frozen=True)
class Row:
    """One combination. calls: evaluations of the denoiser. low, high: 95% interval of the distance."""

    sampler: str
    grid: str
    steps: int
    calls: int
    distance: float
    low: float
    high: float
    seconds: float


@dataclass(frozen=True)
class Table:
    """All rows, and what they stand on. real: the distance of two sets of real images, in words."""

    rows: list[Row]
    model: str
    images: int
    guidance: str
    real: str
    extractor: str


def trained(config: Config) -> dict[str, Artifact]:
    """The finished artifacts up to the diffusion stage. Raises UserError if one is missing."""
    from pipeline.cluster.inline import Inline
    from pipeline.stages import graph, precision

    config = precision.resolve(graph.absolute(config), Inline())  # type: ignore[arg-type]
    found = {}
    for step in graph.plan(config, Store(config.run.root), "diffusion"):
        if step.artifact is None:
            raise UserError(
                f"{step.stage} {step.fingerprint} is not finished in {config.run.root}: run `ldm diffusion`"
            )
        found[step.stage] = step.artifact
    return found


def usual(config: Config) -> tuple[list[str], list[str], list[int]]:
    """The samplers, grids and numbers of steps that are measured of the model of a config: of a student its own."""
    from models.diffusion import grids, samplers

    student = config.diffusion.distil
    return (
        [name for name in samplers.NAMES if (name in samplers.JUMPS) == bool(student)],
        [name for name in grids.GRIDS if (name == "few") == bool(student)],
        [student.steps] if student else [5, 10, 20],
    )


def measure(
    config: Config, samplers: Sequence[str], grids: Sequence[str], steps: Sequence[int], samples: int | None = None
) -> Table:
    """Distance of every combination; rows that an earlier call has measured are read from `<root>/solvers/`."""
    import torch

    from pipeline.data.split import load_split
    from pipeline.evaluation import scores
    from pipeline.evaluation.extractors import extractor_of
    from pipeline.generate import sampling
    from pipeline.generate.class_numbers import Label
    from pipeline.generate.folder import from_artifacts

    for key, names in (("sampler", samplers), ("grid", grids)):
        for name in names:
            sampling.check({**sampling.DEFAULTS, key: name})
    if (student := config.diffusion.distil) and set(steps) != {student.steps}:
        raise UserError(f"steps: this model is a student that samples in {student.steps} steps alone; give these")
    if config.data.buckets is not None:
        raise UserError("`ldm solvers` samples one shape only, and `data.buckets` asks for several; leave it out")
    section = config.evaluate.model_copy(update={"samples": samples or config.evaluate.samples})
    made = trained(config)
    splits = [load_split(made["ingest"].path, split, config, config.evaluate.seed) for split in ("train", "val")]
    (train, labels), (held_out, _) = splits
    n = min(section.samples, len(held_out), len(train) // 2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    how = sampling.configured(section)
    inputs = (made["autoencoder"], made["encode"], made["diffusion"])
    generator = from_artifacts(*inputs, device, how, weights=section.weights)
    classes = len(generator.classes)
    measured = config.model_copy(update={"evaluate": section})
    extractor = extractor_of(measured, made["ingest"], lambda: (splits[0], splits[1]))
    asked = [Label(c) for c in scores.asked_classes(labels, n, classes)] if classes else None
    features = extractor(held_out[:n])

    def score(images: Images) -> Figure:
        from pipeline.evaluation.metrics import frechet

        return frechet.figure(
            extractor(images),
            features,
            extractor=extractor.digest,
            real=scores.real_digest(train[:n], held_out[:n]),
            resamples=section.bootstrap,
            seed=section.seed,
        )

    try:
        real = score(train[:n])
    except ValueError as error:
        raise UserError(f"no distance can be given: {error}") from None
    request = {"classes": asked, "n": n, "seed": section.seed, "batch_size": section.batch_size}
    resting = [generator.about["weights"], made["diffusion"].content, extractor.digest, real.real]
    key = digest([*resting, n, section.seed, section.batch_size, how])
    combinations = [(s, g, k) for k in steps for s in samplers for g in grids]
    rows = list(_rows(generator, request, combinations, score, folder(config) / f"{key[:16]}.json"))
    return Table(
        rows=rows,
        model=made["diffusion"].name,
        images=n,
        guidance=f"{section.guidance_kind} {section.guidance:g}" if section.guidance != 1 else "none",
        real=f"{real.value:.3g} [{real.interval[0]:.3g}, {real.interval[1]:.3g}]",
        extractor=f"{extractor.description}, digest {extractor.digest[:12]}",
    )


def folder(config: Config) -> Path:
    """Where measured rows are kept."""
    return Path(config.run.root) / "solvers"


def _rows(
    generator: Generator, request: dict[str, Any], combinations: list[tuple[str, str, int]], score: Score, known: Path
) -> Iterator[Row]:
    from models.diffusion.samplers import evaluations

    kept: dict[str, Any] = read_json(known) if known.exists() else {}
    for sampler, grid, steps in combinations:
        name = f"{sampler} {grid} {steps}"
        if name not in kept:
            begun = time.monotonic()
            images = generator.sample(**request, sampler=sampler, grid=grid, steps=steps)
            seconds = time.monotonic() - begun
            figure = score(images)
            row = Row(sampler, grid, steps, evaluations(sampler, steps), figure.value, *figure.interval, seconds)
            kept[name] = asdict(row)
            known.parent.mkdir(parents=True, exist_ok=True)
            write_json(known, kept)
        row = Row(**kept[name])
        print(f"{name}: {row.distance:.4g} [{row.low:.4g}, {row.high:.4g}], {row.seconds:.1f} s", flush=True)
        yield row


def best(rows: Sequence[Row], steps: int = STEPS) -> list[Row]:
    """Rows of `steps` steps, the smallest distance first. Empty if none has so many."""
    return sorted((row for row in rows if row.steps == steps), key=lambda row: row.distance)


def verdict(table: Table) -> str:
    """The best combination in a sentence: of 10 steps, and of at most as many evaluations."""
    steps = STEPS if best(table.rows) else max(row.steps for row in table.rows)
    first = best(table.rows, steps)[0]
    text = f"Best of {steps} steps: {first.sampler} on {first.grid}, {_figure(first)}, {first.calls} evaluations"
    cheap = min((row for row in table.rows if row.calls <= steps), key=lambda row: row.distance, default=first)
    if cheap != first:
        text += (
            f"; of at most {steps} evaluations: {cheap.sampler} on {cheap.grid}, {cheap.steps} steps, {_figure(cheap)}"
        )
    others = [row for row in best(table.rows, steps)[1:] if row.low <= first.distance]
    if others:
        shown = ", ".join(f"{row.sampler} on {row.grid}" for row in others[:4])
        text += f". Intervals that reach it: {shown}" + (f" and {len(others) - 4} more" if len(others) > 4 else "")
    return text + "."


def _figure(row: Row) -> str:
    return f"{row.distance:.3g} [{row.low:.3g}, {row.high:.3g}]"


def markdown(table: Table, command: str) -> str:
    """The table with its verdict, as markdown; `command` is what made it."""
    lines = [
        f"# Solvers of {table.model}",
        "",
        verdict(table),
        "",
        f"Fréchet distance of {table.images} samples to {table.images} held-out images, with 95% intervals (real data: "
        f"{table.real}); guidance: {table.guidance}; features: {table.extractor}. All combinations start from the same "
        "noise. Made by:",
        "",
        f"    {command}",
        "",
        "| steps | sampler | grid | evaluations | distance | interval | seconds |",
        "| ---: | --- | --- | ---: | ---: | --- | ---: |",
    ]
    for row in sorted(table.rows, key=lambda row: (row.steps, row.distance)):
        interval = f"{row.low:.3g} to {row.high:.3g}"
        cells = (row.steps, row.sampler, row.grid, row.calls, f"{row.distance:.3g}", interval, f"{row.seconds:.1f}")
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def publish(config: Config, table: Table, text: str) -> Path:
    """Keep the table under `<root>/solvers/`, and show it in the tracker as a run: curves over steps."""
    from pipeline.tracking import tracker

    key = digest([table.model, table.images, text])[:16]
    file = folder(config) / f"{key}.md"
    atomic_write(file, text)
    spool = tracker.Spool(Path(config.run.root) / "pipelines" / f"solvers-{key}" / "spool", f"solvers/{key}", 1)
    shipper = tracker.start(config.run.root, config.tracking.uri, config.tracking.deadline)
    spool.start(
        f"solvers {config.run.name}", tags={"ldm.diffusion": table.model}, experiment=config.tracking.experiment
    )
    for row in sorted(table.rows, key=lambda row: row.steps):
        spool.metrics({f"solvers/{row.sampler}-{row.grid}": row.distance}, row.steps)
    spool.note(text.partition("\n\n")[2])  # without the title: the verdict first
    spool.file(file)
    spool.end()
    left = shipper.drain()
    if left:
        print(tracker.left_message(config.run.root, shipper.uri, left), flush=True)
    return file
