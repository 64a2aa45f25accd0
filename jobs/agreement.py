"""`ldm agreement`: whether a model's samples show what they were told, by rows of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jobs.cli import main
from jobs.common import PATH, PLACE, numbers
from jobs.sample import SAMPLERS


@click.command("agreement")
@click.argument("model", type=PLACE)
@click.argument("data", type=PATH)
@click.option("--train", required=True, type=PATH, help="Table of the real images that the judges are trained on.")
@click.option("--out", required=True, type=PATH, help="Folder for agreement.json and grid.png.")
@click.option("--columns", default="", help="Columns that are judged, separated by commas.")
@click.option("--captions", is_flag=True, help="Also look samples up among the captions of DATA.")
@click.option("-n", "--count", default=400, show_default=True, type=click.IntRange(20), help="Rows of DATA, at most.")
@click.option("--guidance", default="1", show_default=True, help="Guidance scales, separated by commas.")
@click.option("--image", default="image", show_default=True, help="Column of the images in both tables.")
@click.option("--caption", default="caption", show_default=True, help="Column of the captions, where they are needed.")
@click.option("--label", default=None, help="Column of the class, of a model that is told one.")
@click.option("--sampler", default=None, type=click.Choice(SAMPLERS), help="Default: the model's.")
@click.option("--steps", default=None, type=click.IntRange(1), help="Steps of the sampler; default: the model's.")
@click.option("--batch-size", default=None, type=click.IntRange(1), help="Images at once; default: the model's.")
@click.option(
    "--judge-steps", default=1500, show_default=True, type=click.IntRange(1), help="Training steps of a judge."
)
@click.option("--flip", is_flag=True, help="Judges may be trained on mirrored images as well.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of rows, noise and judges.")
@click.option("--weights", default=None, type=PLACE, help="Other weights of the denoiser, as of `ldm sample`.")
@click.option("--root", default="runs", type=PATH, help="Where runs lie, and the pool of judges.")
def command(
    model: str, data: Path, train: Path, out: Path, columns: str, guidance: str, image: str, caption: str,
    label: str | None, weights: str | None, root: Path, **rest: Any,
) -> None:  # fmt: skip
    """Sample what the rows of DATA (a table of images with columns, such as held-out combinations) say, and let judges
    say how much of it is to be seen: beside the real images of these rows, and beside other rows."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.applications import agreement, made_images
    from pipeline.applications.recorded import record
    from pipeline.errors import many
    from pipeline.generate.folder import load_pretrained

    scales = numbers("--guidance", guidance)
    values = agreement.measure(
        load_pretrained(model, root=root, weights=weights),
        data, train, out, root=root, scales=scales,
        columns=[name.strip() for name in columns.split(",") if name.strip()],
        named={"image": image, "caption": caption, "label": label}, **rest,
    )  # fmt: skip
    header, rows = agreement.table(values)
    shown = Table(*header, box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*row)
    Console(width=None if Console().is_terminal else 200).print(shown)
    of = f"{many(values['rows'], 'row')} of {data}"
    print(f"{of}; figures in {out / agreement.FIGURES}, images in {out / made_images.GRID}", flush=True)
    record(root, "agreement", out, of, [made_images.GRID], agreement.figures(values))


if __name__ == "__main__":
    main(command)
