"""`ldm edit`: images as a model would have them if something else were true of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from jobs.cli import main
from jobs.common import PATH, PLACE, numbers
from jobs.sample import pairs


@click.command("edit")
@click.argument("model", type=PLACE)
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder for the edited images and grid.png.")
@click.option("--set", "to", multiple=True, help="NAME=VALUE that shall be true: an attribute, class or caption.")
@click.option("--along", default=None, type=PATH, help="A direction, of `ldm probe --between`, to go along.")
@click.option("--by", default="1", show_default=True, help="How far along it, and back below 0; several: -2,-1,1,2.")
@click.option("--was", multiple=True, help="NAME=VALUE that is true of the images; guidance leads away from it.")
@click.option("--strength", default="0.6", show_default=True, help="How far, above 0 to 1; several: 0.3,0.5,0.7.")
@click.option(
    "--method",
    default="inversion",
    show_default=True,
    type=click.Choice(["inversion", "noise"]),
    help="Start from the image's own noise, or from fresh noise.",
)
@click.option("--mask", default=None, type=PATH, help="A picture: white where the images may change.")
@click.option("--steps", default=50, show_default=True, type=click.IntRange(1), help="Steps from noise to image.")
@click.option("--guidance", default=None, type=click.FloatRange(0), help="Guidance scale; default: the model's.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of fresh noise.")
@click.option("--root", default="runs", type=PATH, help="Where runs and MLflow's data base lie.")
def command(
    model: str, images: tuple[Path, ...], out: Path, to: tuple[str, ...], was: tuple[str, ...], strength: str,
    along: Path | None, by: str, method: str, mask: Path | None, steps: int, guidance: float | None, seed: int,
    root: Path,
) -> None:  # fmt: skip
    """Edit IMAGES (files, or folders) with MODEL: a PNG each, and grid.png, a row each: the image, what the autoencoder
    makes of it, the edits by strength, or by how far along a direction."""
    from pipeline.applications import directions, given_images, made_images
    from pipeline.applications.edit import edit, requests
    from pipeline.applications.recorded import record
    from pipeline.errors import UserError, many
    from pipeline.files import sha256_file
    from pipeline.generate.folder import load_pretrained

    strengths, amounts = numbers("--strength", strength), numbers("--by", by)
    if not along and amounts != [1.0]:
        raise UserError("--by: how far along a direction; give it with --along")
    if not all(math.isfinite(amount) for amount in amounts):
        raise UserError(f"--by {by}: expected finite numbers")
    if len(strengths) > 1 and len(amounts) > 1:
        raise UserError("--by: several, and several of --strength; give one of either")
    asked, true = pairs("--set", to), pairs("--was", was)
    files = given_images.files_of(images)
    generator = load_pretrained(model, root=root)
    generator.pictures_only("`ldm edit`")
    shape, channels = generator.shapes[0], generator.channels
    held = None if mask is None else given_images.read_mask(mask, shape)
    how: dict[str, Any] = {"steps": steps, **({"guidance": guidance} if guidance is not None else {})}
    for value in strengths:
        requests(generator, len(files), asked, true, value, method, seed, along is not None, **how)
    direction = directions.read(along, generator) if along else None
    for file in files:  # what is wrong with any of them is said before the first is edited
        given_images.read(file, channels, shape)
    more: dict[str, Any] = {"mask": sha256_file(mask)} if mask else {}
    more |= {"along": sha256_file(along), "by": amounts} if along else {}
    info = {"set": asked, "was": true, "strength": strengths, "method": method, "seed": seed, **more, **how}
    made_images.begin(out, generator, files, info)
    each = [(value, amount) for value in strengths for amount in amounts]  # of one of the two there is one
    several = amounts if len(amounts) > 1 else strengths
    ways = [f"{value:g}" for value in several] if len(several) > 1 else [None]
    shown = []
    for first in range(0, len(files), generator.defaults["batch_size"]):
        some = files[first : first + generator.defaults["batch_size"]]
        pixels = given_images.stacked(some, channels, shape)
        plain = generator.decode(generator.encode(pixels))
        shown += [[made_images.cell(one) for one in pair] for pair in zip(pixels, plain, strict=True)]
        for (value, amount), way in zip(each, ways, strict=True):
            if made_images.missing(out, some, [way]):
                gone = None if direction is None else amount * direction
                made = edit(generator, pixels, asked, true, value, method, held, seed, first, gone, **how)
                for file, image in zip(some, made, strict=True):
                    made_images.put(made_images.place(out, file, way), image)
    made_images.finish(out, files, ways, shown)
    said = f"{many(len(files) * len(ways), 'image')} in {out}, side by side in {out / made_images.GRID}"
    print(said, flush=True)
    record(root, "edit", out, said, [made_images.GRID])


if __name__ == "__main__":
    main(command)
