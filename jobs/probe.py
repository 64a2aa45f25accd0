"""`ldm probe`: how well classes, or the box of an object, are told from a model's features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.cli import main
from jobs.common import PATH

if TYPE_CHECKING:
    from pipeline.applications.probe import Table


@click.command("probe")
@click.argument("features", type=PATH)
@click.option("--target", default=None, help="Column of the class; default: the labels.")
@click.option("--box", default=None, help="Four columns of a box in place of a class, such as x0,y0,x1,y1.")
@click.option("--between", default=None, help="A,B: write the direction between two values instead.")
@click.option("--group", default=None, help="Column whose images of one value stay together, in training or test.")
@click.option("--few", default="10,100", show_default=True, help="Labels a class, besides all; empty: all alone.")
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1), help="Draws of images and labels.")
@click.option("--out", default=None, type=PATH, help="Also write the figures here (JSON).")
@click.option("--root", default="runs", type=PATH, help="Where the run lies that made the model.")
def command(
    features: Path, target: str | None, box: str | None, between: str | None, group: str | None, few: str, seeds: int,
    out: Path | None, root: Path,
) -> None:  # fmt: skip
    """Probe FEATURES, an .npz file of `ldm features`: linear and nearest neighbours on the best level and block, beside
    pixels, patch PCA and the autoencoder's latents."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.applications import probe
    from pipeline.applications.recorded import record
    from pipeline.errors import UserError, many
    from pipeline.files import digest, write_json

    if box and (target or between):
        raise UserError("--box: a box has no class; leave --target and --between out")
    counts = [part.strip() for part in few.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 1 for part in counts):
        raise UserError(f"--few {few}: expected whole numbers above 1, separated by commas")
    table = probe.load(features)
    how = {"target": target, "box": box, "group": group, "few": few, "seeds": seeds, "features": digest(table.about)}
    asked = {"model": table.about.get("model", {}), "how": how}
    if between is not None:
        _direction(table, between, target, out, root)
        return
    values = None if out is None else probe.earlier(out, asked)
    if values is None:
        if box:
            values = probe.boxes(table, [name.strip() for name in box.split(",")], group, seeds)
        else:
            values = probe.classes(table, target, group, seeds, [int(part) for part in counts])
        if out is not None:
            write_json(out, {**values, "few": counts, "asked": asked})
    header, rows = probe.rows(values)
    shown = Table(*header, box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*row)
    Console(width=None if Console().is_terminal else 200).print(shown)
    images = values["images"]
    told, seen = images["fit"] + images["tune"], many(seeds, "seed")
    said = f"{many(told, 'image')} to learn from, {images['test']:,} to test (held out: {values['held_out']}), {seen}"
    if "gain" in values:
        said += f"\n{values['chosen']}: {100 * values['gain']:+.1f} points over {values['over']} (linear, all labels)"
    print(said, flush=True)
    if out is not None:
        print(f"written to {out}", flush=True)
    record(root, "probe", features, said.replace("\n", "; "), metrics=probe.metrics(values), asked=asked)


def _direction(table: Table, between: str, target: str | None, out: Path | None, root: Path) -> None:
    """Find, write and record the direction between two values."""
    from pipeline.applications import directions
    from pipeline.applications.made_images import written
    from pipeline.applications.recorded import record
    from pipeline.errors import UserError, many

    before, _, after = (part.strip() for part in between.partition(","))
    if not before or not after or "," in after or before == after:
        raise UserError(f"--between {between}: expected two values, A,B")
    if out is None or out.suffix != ".safetensors":
        raise UserError("--between: give --out NAME.safetensors, where the direction shall lie")
    direction, about = directions.found(table, before, after, target)
    if not written(out, about, directions.said):
        directions.write(out, direction, about)
    few, more = about["images"]
    said = f"a direction from {many(few, 'image')} of {before} to {more:,} of {after}: {out}"
    print(said, flush=True)
    how = {"between": between, "target": target, "features": about["features"]}
    record(root, "probe", out.parent, said, [out.name], asked={"model": about["model"], "how": how})


if __name__ == "__main__":
    main(command)
