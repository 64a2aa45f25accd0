"""`ldm compose`: two images made one: a strip between them, a collage, the look of one on the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jobs.cli import main
from jobs.common import PATH, PLACE
from jobs.sample import pairs

TRY = "give more --steps, such as twice as many"


@click.command("compose")
@click.argument("model", type=PLACE)
@click.argument("a", type=PATH, required=False)
@click.argument("b", type=PATH, required=False)
@click.option("--out", default=None, type=PATH, help="Folder for the images and grid.png.")
@click.option("--text", "texts", multiple=True, help="Of a model of text, twice: a strip between these is printed.")
@click.option("--between", default=None, type=click.IntRange(3, 100), help="A strip of so many images from A to B.")
@click.option("--mask", default=None, type=PATH, help="A picture: A where it is black, B where it is white.")
@click.option("--look", is_flag=True, help="What is on A, in the colours and contrast of B.")
@click.option("--set", "to", multiple=True, help="NAME=VALUE that is true of both: an attribute, class or caption.")
@click.option(
    "--strength", default=None, type=float, help="Of --mask and --look: how far, above 0 to 1.  [default: 0.25]"
)
@click.option("--steps", default=50, show_default=True, type=click.IntRange(1), help="Steps from noise to image.")
@click.option("--guidance", default=None, type=click.FloatRange(0), help="Guidance scale; default: the model's.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of fresh noise.")
@click.option("--root", default="runs", type=PATH, help="Where runs and MLflow's data base lie.")
def command(
    model: str, a: Path | None, b: Path | None, out: Path | None, texts: tuple[str, ...], between: int | None,
    mask: Path | None, look: bool, to: tuple[str, ...], strength: float | None, steps: int, guidance: float | None,
    seed: int, root: Path,
) -> None:  # fmt: skip
    """Make images A and B one with MODEL, in one of three ways: --between, --mask or --look. A PNG each, and grid.png:
    A, B, then what was made. With --text twice, and --between: texts from one to the other, printed, a line each."""
    from pipeline.applications import compose, given_images, made_images
    from pipeline.applications.recorded import record
    from pipeline.data.captions import cleaned
    from pipeline.errors import UserError, for_terminal, many
    from pipeline.files import sha256_file
    from pipeline.generate.folder import load_pretrained

    asked = pairs("--set", to)
    how: dict[str, Any] = {"steps": steps, **({"guidance": guidance} if guidance is not None else {})}
    if texts:
        if a or out or mask or look or strength is not None:
            raise UserError("--text: is printed, and goes with --between alone; leave out images, --out and other ways")
        if len(texts) != 2 or between is None:
            raise UserError("--text: give it twice, with --between N, the number of texts from one to the other")
        for text in compose.between_texts(load_pretrained(model, root=root), *texts, between, asked, **how):
            print(for_terminal(cleaned(text)), flush=True)
        return
    if a is None or b is None or out is None:
        raise UserError("give images A and B and --out, or --text twice with a model of text")
    if (between is not None) + (mask is not None) + look != 1:
        raise UserError("give one of --between N (a strip), --mask M (a collage) and --look (the look of B on A)")
    if between and strength is not None:
        raise UserError("--strength: a strip goes all the way to noise; leave it out")
    for file in (a, b):
        if not file.is_file():
            raise UserError(f"{file}: is not there, or is no file; give an image")
    generator = load_pretrained(model, root=root)
    generator.pictures_only("`ldm compose`")
    shape, channels = generator.shapes[0], generator.channels
    info: dict[str, Any] = {"between": between, "look": look, "set": asked, **how}
    far: dict[str, Any] = {"strength": compose.STRENGTH if strength is None else strength, "seed": seed}
    marked = None
    if between:
        compose.strip_request(generator, between, asked, **how)
    else:
        compose.noised_request(generator, asked, **far, **how)
        info |= far
    if mask:
        marked, info["mask"] = given_images.read_mask(mask, shape), sha256_file(mask)
        if marked.all():
            raise UserError(f"{mask}: is white everywhere, so nothing of A would be there; paint black where A stays")
    first, second = (given_images.read(file, channels, shape) for file in (a, b))
    made_images.begin(out, generator, [a, b], info)
    name = Path("between.png" if between else "collage.png" if mask else "look.png")
    ways = [str(i) for i in range(between)] if between else [None]
    if made_images.missing(out, [name], ways):
        if between:
            strip = compose.between(generator, first, second, between, asked, **how)
            for file, off in zip((a, b), compose.apart(generator, first, second, strip), strict=True):
                if off > compose.NOTABLE:
                    print(f"{file}: its end is {off:.0f} gray levels off, since its walk to noise is not undone; {TRY}")
            made = list(strip)
        elif marked is not None:
            made = [compose.collage(generator, first, second, marked, asked, **far, **how)]
        else:
            made = [compose.look(generator, first, second, asked, **far, **how)]
        for way, image in zip(ways, made, strict=True):
            made_images.put(made_images.place(out, name, way), image)
    made_images.finish(out, [name], ways, [[made_images.cell(first), made_images.cell(second)]])
    said = f"{many(len(ways), 'image')} in {out}, beside A and B in {out / made_images.GRID}"
    print(said, flush=True)
    record(root, "compose", out, said, [made_images.GRID])


if __name__ == "__main__":
    main(command)
