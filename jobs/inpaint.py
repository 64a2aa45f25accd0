"""`ldm inpaint`: what is missing of images, drawn anew; also what lies beyond their border."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jobs.cli import main
from jobs.common import PATH, PLACE
from jobs.sample import pairs

STEPS = 12


@click.command("inpaint")
@click.argument("model", type=PLACE)
@click.argument("images", nargs=-1, type=PATH)
@click.option("--out", default=None, type=PATH, help="Folder for the images and grid.png.")
@click.option("--text", default=None, help="Of a model of text: a text with ___ where something is to be written.")
@click.option("--gap", default=4, show_default=True, type=click.IntRange(1), help="With --text: tokens of a gap.")
@click.option("--mask", default=None, type=PATH, help="A picture of the images' size: white where they are drawn anew.")
@click.option("--pad", default=0, type=click.IntRange(0), help="Pixels that are added on all sides, and drawn.")
@click.option(
    "-n", "--count", default=1, show_default=True, type=click.IntRange(1, 1000), help="Drawings of each image."
)
@click.option("--set", "to", multiple=True, help="NAME=VALUE that shall be true: an attribute, class or caption.")
@click.option(
    "--steps", default=None, type=click.IntRange(1), help="Steps from noise to image; default: 12, of a text 40."
)
@click.option(
    "--temperature", default=0.7, show_default=True, type=click.FloatRange(0, 1), help="Share of the noise: variety."
)
@click.option("--guidance", default=None, type=click.FloatRange(0), help="Guidance scale; default: the model's.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed; others, other drawings.")
@click.option("--root", default="runs", type=PATH, help="Where runs and MLflow's data base lie.")
def command(
    model: str, images: tuple[Path, ...], out: Path | None, text: str | None, gap: int, mask: Path | None, pad: int,
    count: int, to: tuple[str, ...], steps: int | None, temperature: float, guidance: float | None, seed: int,
    root: Path,
) -> None:  # fmt: skip
    """Draw what --mask marks in IMAGES (files, or folders), or what --pad adds to them, with MODEL. What is known stays
    as it is, pixel by pixel, at the images' own size. A PNG each, and grid.png, a row an image: what was known, then
    the drawings. With --text: what fits where it has ___, printed, a line each; its other words stay as they are."""
    import numpy as np

    from pipeline.applications import given_images, made_images
    from pipeline.applications.inpaint import canvas, check, inpaint, requested
    from pipeline.applications.recorded import record
    from pipeline.errors import UserError, many
    from pipeline.files import sha256_file
    from pipeline.generate.folder import load_pretrained

    if text is not None:
        if images or out or mask or pad:
            raise UserError("--text: is printed, and goes with no images, --mask, --pad or --out; leave these out")
        own = {key: value for key, value in (("steps", steps), ("guidance", guidance)) if value is not None}
        write(model, text, gap, count, pairs("--set", to), seed, root, **own)
        return
    if not images or out is None:
        raise UserError("give images and --out, or --text with a model of text")
    if mask is None and not pad:
        raise UserError("give --mask, a picture of what is to be drawn anew, or --pad, what is to be added around")
    files = given_images.files_of(images)
    asked = pairs("--set", to)
    generator = load_pretrained(model, root=root)
    how: dict[str, Any] = {"steps": steps or STEPS, **({"guidance": guidance} if guidance is not None else {})}
    requested(generator, count, asked, temperature, seed, **how)
    for file in files:  # what is wrong with any of them is said before the first is drawn
        check(generator, *canvas(file, mask, pad, generator.channels))
    given = {"mask": sha256_file(mask)} if mask else {}
    info = {**given, "pad": pad, "count": count, "set": asked, "temperature": temperature, "seed": seed, **how}
    made_images.begin(out, generator, files, info)
    ways = [str(i) for i in range(count)] if count > 1 else [None]
    shown = []
    for file in files:
        pixels, marked = canvas(file, mask, pad, generator.channels)
        shown.append([made_images.cell(np.where(marked[:, :, None] == 1, np.uint8(127), pixels))])
        if made_images.missing(out, [file], ways):
            drawn = inpaint(generator, pixels, marked, count, asked, temperature, seed, **how)
            for way, image in zip(ways, drawn, strict=True):
                made_images.put(made_images.place(out, file, way), image)
    made_images.finish(out, files, ways, shown)
    print(said := f"{many(count * len(files), 'image')} in {out}, side by side in {out / made_images.GRID}", flush=True)
    record(root, "inpaint", out, said, [made_images.GRID])


def write(model: str, text: str, gap: int, count: int, to: dict[str, Any], seed: int, root: Path, **how: Any) -> None:
    """Print what fits into the gaps of a text."""
    from pipeline.applications.edit import check_untold, request_of
    from pipeline.data.captions import cleaned
    from pipeline.errors import for_terminal
    from pipeline.generate.folder import load_pretrained
    from pipeline.generate.infill import HOW, infill, parsed

    generator = load_pretrained(model, root=root)
    given = parsed(generator, text, gap)
    if not to:
        check_untold(generator, "inpaint", "--set", "text")
    request = request_of(generator, to, count, seed=seed, **{**HOW, **how})
    for found in infill(generator, given, request):
        print(for_terminal(cleaned(found)), flush=True)


if __name__ == "__main__":
    main(command)
