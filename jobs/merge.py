"""`ldm merge`: a whole model of an adapter and its base."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH, PLACE


@click.command("merge")
@click.argument("model", type=PLACE)
@click.option("-o", "--out", required=True, type=PATH, help="A new folder.")
@click.option("--base", type=PLACE, help="Where the weights are that were adapted, if not where they were.")
@click.option("--root", default="runs", type=PATH, help="Where runs and MLflow's data base lie.")
def command(model: str, out: Path, base: str | None, root: Path) -> None:
    """Add MODEL (a model's or artifact's folder, a run's name, models:/NAME@ALIAS), an adapter, to its base: a model's
    folder that needs neither, for `ldm sample`, `init_from` and `ldm export`.
    """
    from pipeline.generate.merge import merge

    print(merge(model, out, root, base))


if __name__ == "__main__":
    main(command)
