"""`ldm why`: where conditions act in samples of a model, what words look at, which training images are near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jobs.cli import main
from jobs.common import PATH, PLACE, numbers
from jobs.sample import asked
from jobs.sample import command as sample

SAME = ("classes", "prompts", "file", "negative", "values", "maps", "scales", "sampler", "steps", "guidance", "grid",
        "shift", "guidance_kind", "guidance_weak", "guidance_interval", "guidance_rescale", "seed", "batch_size",
        "size", "weights", "root")  # fmt: skip


@click.command("why", params=[option for option in sample.params if option.name in SAME])
@click.argument("model", type=PLACE)
@click.option("--out", required=True, type=PATH, help="Folder for the pictures and figures.")
@click.option(
    "-n",
    "--count",
    default=None,
    type=click.IntRange(1, 1000),
    help="Number of samples; default: 4, or as many as prompts.",
)
@click.option(
    "--show",
    "shows",
    multiple=True,
    type=click.Choice(["guidance", "words", "nearest"]),
    help="What to show; default: all that MODEL can.",
)
@click.option("--levels", default=None, help="Shares of noise to draw, such as 0.9,0.5,0.1.")
@click.option("-k", "--neighbours", default=5, show_default=True, type=click.IntRange(1, 50), help="Training images.")
def command(
    model: str, out: Path, count: int | None, shows: tuple[str, ...], levels: str | None, neighbours: int,
    classes: str | None, prompts: tuple[str, ...], file: str | None, negative: str | None, values: tuple[str, ...],
    maps: tuple[str, ...], scales: tuple[str, ...], seed: int, size: str | None, weights: str | None, root: Path,
    **how: Any,
) -> None:  # fmt: skip
    """Explain samples of MODEL, told as `ldm sample` tells them: where the conditions act, by noise level; what looks
    at the words of a caption; which training images are nearest, and where these come from."""
    from pipeline.applications import made_images, nearest, why_files
    from pipeline.applications.recorded import record
    from pipeline.applications.why import LEVELS, check_levels, shown, why
    from pipeline.data.buckets import parsed
    from pipeline.errors import UserError
    from pipeline.files import sha256_file
    from pipeline.generate.folder import load_pretrained

    drawn = list(LEVELS) if levels is None else numbers("--levels", levels)
    check_levels(drawn)
    told = asked(prompts, file, negative, values, maps, scales)
    shape = parsed(size) if size else None
    generator = load_pretrained(model, root=root, weights=weights)
    names = [name if name in generator.classes else name.strip() for name in classes.split(",")] if classes else None
    listed = told["prompts"] or any(len(files) > 1 for files in told["maps"].values())
    request = generator.request(names, count if count or listed else 4, seed, shape=shape, **told, **how)
    parts = shown(generator, request, shows)
    if "nearest" in parts:
        try:
            nearest.data_of(generator, root)
        except UserError as error:
            if shows or parts == ["nearest"]:
                raise
            print(f"left out: {error}", flush=True)
            parts.remove("nearest")
    files = {name: [sha256_file(f) for f in given] for name, given in told["maps"].items()}
    info = {"request": {**request, "maps": files}, "show": parts, "levels": drawn, "neighbours": neighbours}
    made_images.begin(out, generator, [], info)
    missing = why_files.missing(out, request["n"], parts, request["batch_size"])
    training = nearest.training_of(generator, root) if missing and "nearest" in parts else None
    for rows in missing:
        for one in why(generator, request, rows, parts, drawn, training, neighbours):
            why_files.put(out, one)
    why_files.finish(out, request["n"], parts)
    said = why_files.lines(out)
    print("\n".join(said), flush=True)
    record(root, "why", out, "; ".join(said), [f"{part}.png" for part in parts])


if __name__ == "__main__":
    main(command)
