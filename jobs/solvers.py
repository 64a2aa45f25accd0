"""`ldm solvers`: which sampler, grid of times and number of steps suits a trained model, by measurement."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH, config_options, read
from jobs.sample import GRIDS, SAMPLERS


@click.command("solvers")
@config_options
@click.option("--samplers", default=",".join(SAMPLERS), show_default=True, help="Samplers, separated by commas.")
@click.option("--grids", default=",".join(GRIDS[1:]), show_default=True, help="Grids of times, separated by commas.")
@click.option("--steps", default="5,10,20", show_default=True, help="Numbers of steps, separated by commas.")
@click.option("--samples", default=None, type=click.IntRange(50), help="Images a set; default: `evaluate.samples`.")
@click.option("--out", default=None, type=PATH, help="Also write the table here (markdown).")
def command(
    path: Path, overrides: tuple[str, ...], samplers: str, grids: str, steps: str, samples: int | None, out: Path | None
) -> None:
    """Measure samplers, grids and steps on the trained model of a config, and name the best of 10 steps.

    Prints and keeps a table of Fréchet distances with intervals, and shows it in the tracker. Nothing is trained: run
    `ldm diffusion` first. What was measured before is not measured again.
    """
    from pipeline.applications import solvers as measured
    from pipeline.errors import UserError
    from pipeline.files import atomic_write

    counts = [int(part) for part in steps.split(",") if part.strip().isdecimal() and int(part) > 0]
    if not counts or len(counts) != len(steps.split(",")):
        raise UserError(f"--steps {steps}: expected whole numbers above 0 separated by commas, such as 5,10,20")
    config = read(path, overrides)
    table = measured.measure(config, _names(samplers), _names(grids), counts, samples)
    given = ["--samplers", samplers, "--grids", grids, "--steps", steps, "--samples", str(table.images)]
    text = measured.markdown(table, shlex.join(["ldm", "solvers", "--config", str(path), *given, *overrides]))
    file = measured.publish(config, table, text)
    if out:
        atomic_write(out, text)
    print(f"{text}\nwritten to {out or file}")


def _names(text: str) -> list[str]:
    """Names separated by commas, with or without blanks."""
    return [name.strip() for name in text.split(",")]


if __name__ == "__main__":
    main(command)
