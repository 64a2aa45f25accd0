"""`ldm export`: a model as another program's folder."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH, PLACE


@click.command("export")
@click.argument("model", type=PLACE)
@click.option("--format", "form", default="diffusers", type=click.Choice(["diffusers"]), help="Whose folders to write.")
@click.option("-o", "--out", required=True, type=PATH, help="A new folder.")
@click.option("--root", default="runs", type=PATH, help="Where runs and MLflow's data base lie.")
def command(model: str, form: str, out: Path, root: Path) -> None:
    """Write MODEL (a model's or artifact's folder, a run's name, models:/NAME@ALIAS) for diffusers' from_pretrained.

    An option that has no place there is refused by name.
    """
    from pipeline.generate.exchange import export_diffusers

    print("\n".join(export_diffusers(model, out, root)))


if __name__ == "__main__":
    main(command)
