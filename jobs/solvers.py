"""`ldm solvers`: which sampler, grid of times and number of steps suits a trained model, by measurement."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH, config_options, read


@click.command("solvers")
@config_options
@click.option("--samplers", default=None, help="Samplers, separated by commas; default: all that the model takes.")
@click.option("--grids", default=None, help="Grids of times, separated by commas; default: all that go with these.")
@click.option("--steps", default=None, help="Numbers of steps, separated by commas; default: 5,10,20, a student's own.")
@click.option("--samples", default=None, type=click.IntRange(50), help="Images a set; default: `evaluate.samples`.")
@click.option("--out", default=None, type=PATH, help="Also write the table here (markdown).")
def command(
    path: Path,
    overrides: tuple[str, ...],
    samplers: str | None,
    grids: str | None,
    steps: str | None,
    samples: int | None,
    out: Path | None,
) -> None:
    """Measure samplers, grids and steps on the trained model of a config, and name the best of 10 steps.

    Prints and keeps a table of Fréchet distances with intervals, and shows it in the tracker. Nothing is trained: run
    `ldm diffusion` first. What was measured before is not measured again.
    """
    from pipeline.applications import solvers as measured
    from pipeline.errors import UserError
    from pipeline.files import atomic_write

    asked = _names(steps)
    counts = [int(part) for part in asked if part.isdecimal() and int(part) > 0]
    if len(counts) != len(asked) or (steps is not None and not counts):
        raise UserError(f"--steps {steps}: expected whole numbers above 0 separated by commas, such as 5,10,20")
    config = read(path, overrides)
    usual = measured.usual(config)
    walked, placed = _names(samplers) or usual[0], _names(grids) or usual[1]
    counts = counts or usual[2]
    table = measured.measure(config, walked, placed, counts, samples)
    given = ["--samplers", ",".join(walked), "--grids", ",".join(placed), "--steps", ",".join(map(str, counts))]
    given += ["--samples", str(table.images)]
    text = measured.markdown(table, shlex.join(["ldm", "solvers", "--config", str(path), *given, *overrides]))
    file = measured.publish(config, table, text)
    if out:
        atomic_write(out, text)
    print(f"{text}\nwritten to {out or file}")


def _names(text: str | None) -> list[str]:
    """Names separated by commas, with or without blanks; none of nothing."""
    return [name.strip() for name in text.split(",")] if text else []


if __name__ == "__main__":
    main(command)
