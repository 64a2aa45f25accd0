"""`ldm restore`: images without noise, blur or JPEG's blocks, larger, or in colour, by any trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jobs.cli import main
from jobs.common import PATH, PLACE
from jobs.sample import pairs


@click.command("restore")
@click.argument("model", type=PLACE)
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder for the restored images and grid.png.")
@click.option(
    "--task",
    required=True,
    type=click.Choice(["denoise", "deblur", "superres", "colorize", "jpeg"]),
    help="What is to be undone.",
)
@click.option("--noise", default=None, type=float, help="Noise, in gray levels of 255; denoise estimates it by itself.")
@click.option("--blur", default=None, type=float, help="Deviation of the Gaussian blur, in pixels.")
@click.option("--factor", default=None, type=int, help="How many times larger.")
@click.option("--quality", default=None, type=int, help="Of JPEG, 1 to 100; default: as a JPEG file says of itself.")
@click.option("--set", "to", multiple=True, help="NAME=VALUE that is true of the images: attribute, class, caption.")
@click.option("--steps", default=None, type=click.IntRange(1), help="Steps of the walk; default: 12.")
@click.option("--guidance", default=None, type=click.FloatRange(0), help="Guidance scale; default: the model's.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed; others, other details.")
@click.option("--root", default="runs", type=PATH, help="Where runs and MLflow's data base lie.")
def command(
    model: str, images: tuple[Path, ...], out: Path, task: str, noise: float | None, blur: float | None,
    factor: int | None, quality: int | None, to: tuple[str, ...], steps: int | None, guidance: float | None, seed: int,
    root: Path,
) -> None:  # fmt: skip
    """Restore IMAGES (files, or folders) with MODEL, at their own size: a PNG each, and grid.png, a row an image: as it
    was given, then restored."""
    from pipeline.applications import given_images, made_images
    from pipeline.applications.jpeg_tables import quality_of, turn_of, turned
    from pipeline.applications.recorded import record
    from pipeline.applications.restore import check, requested, restore
    from pipeline.errors import many
    from pipeline.generate.folder import load_pretrained

    files = given_images.files_of(images)
    asked = pairs("--set", to)
    own = [quality_of(file) for file in files] if task == "jpeg" and quality is None else [quality] * len(files)
    generator = load_pretrained(model, root=root)
    generator.pictures_only("`ldm restore`")
    channels = 1 if task == "colorize" else generator.channels
    chosen = {"steps": steps, "guidance": guidance}
    how: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    for file, each in zip(files, own, strict=True):  # what is wrong with any is said before the first is restored
        given = {"noise": noise, "blur": blur, "factor": factor, "quality": each}
        requested(generator, 1, task, given, asked, seed, **how)
        check(generator, (1, *given_images.read(file, channels, None).shape), task, factor)
    given = {"noise": noise, "blur": blur, "factor": factor, "quality": quality}
    made_images.begin(out, generator, files, {"task": task, **given, "set": asked, "seed": seed, **how})
    shown = []
    for number, (file, each) in enumerate(zip(files, own, strict=True)):
        pixels = given_images.read(file, channels, None)
        shown.append([made_images.cell(pixels)])
        if made_images.missing(out, [file], [None]):
            turn = turn_of(file) if task == "jpeg" else 1  # its blocks lie as the file does
            given_so = turned(pixels, turn, upright=False)[None]
            made = restore(generator, given_so, task, noise, blur, factor, each, asked, seed, number, **how)
            made_images.put(made_images.place(out, file, None), turned(made[0], turn, upright=True))
    made_images.finish(out, files, [None], shown)
    said = f"{many(len(files), 'image')} in {out}, beside what was given in {out / made_images.GRID}"
    print(said, flush=True)
    record(root, "restore", out, said, [made_images.GRID])


if __name__ == "__main__":
    main(command)
