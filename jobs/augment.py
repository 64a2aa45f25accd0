"""`ldm augment`: labelled images that a model makes, filtered and marked, as tars to train something else on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jobs.cli import main
from jobs.common import PATH, PLACE
from jobs.sample import SAMPLERS


@click.command("augment")
@click.argument("model", type=PLACE)
@click.argument("data", type=PLACE)
@click.option("-o", "--out", required=True, type=PATH, help="Folder for the tars.")
@click.option("--per-class", default=500, show_default=True, type=click.IntRange(1), help="Images of each class.")
@click.option("--by", default=None, help="An attribute of the model, of whose values images are made; default: class.")
@click.option("--image", default=None, help="Column of the images in a table; default: image.")
@click.option("--label", default=None, help="Column of the class in a table.")
@click.option("--real", is_flag=True, help="Write DATA's images to the folder as well, so that it is a whole data set.")
@click.option(
    "--least", default=None, type=click.FloatRange(0, 1), help="Least confidence, 0 takes all; default: by --share."
)
@click.option(
    "--share", default=0.7, show_default=True, type=click.FloatRange(0, 1, min_open=True),
    help="Of unseen real images that reach the least confidence.",
)  # fmt: skip
@click.option("--sampler", default=None, type=click.Choice(SAMPLERS), help="Default: the model's.")
@click.option("--steps", default=None, type=click.IntRange(1), help="Steps of the sampler; default: the model's.")
@click.option("--guidance", default=None, type=click.FloatRange(0), help="Guidance scale; default: the model's.")
@click.option("--batch-size", default=None, type=click.IntRange(1, 500), help="Images at once; default: the model's.")
@click.option(
    "--judge-steps", default=1500, show_default=True, type=click.IntRange(1), help="Training steps of the judge."
)
@click.option("--flip", is_flag=True, help="The judge may be trained on mirrored images as well.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed; others, other images.")
@click.option("--weights", default=None, type=PLACE, help="Other weights of the denoiser, as of `ldm sample`.")
@click.option("--root", default="runs", type=PATH, help="Where runs lie, and the pool of judges.")
def command(
    model: str, data: str, out: Path, per_class: int, by: str | None, image: str | None, label: str | None, real: bool,
    least: float | None, share: float, judge_steps: int, flip: bool, seed: int, weights: str | None, root: Path,
    **how: Any,
) -> None:  # fmt: skip
    """Draw images of each class of DATA (real images with their classes: a folder, a table, an .npz file, tars, or a
    config, of which the images that train) with MODEL, keep those that a judge of the real ones is sure of, and write
    them as tars that an ingest reads: each marked as generated, so that no ingest holds one out."""
    from pipeline.applications import augment, given_data, labelled, made_images
    from pipeline.applications.recorded import record
    from pipeline.data.sources import digests_folder_of
    from pipeline.errors import UserError, many
    from pipeline.generate.folder import load_pretrained

    chosen = given_data.data_of(data, {"image": image, "label": label})
    if real and chosen.source.kind == "webdataset":
        raise UserError(
            "--real: DATA are tars already; leave it out, and give ingest both by a pattern, {DATA,OUT}/*.tar"
        )
    generator = load_pretrained(model, root=root, weights=weights)
    generator.pictures_only("`ldm augment`")
    column, shape = augment.column_of(generator, by), augment.shape_of(generator)
    samples = given_data.listed(chosen, digests_folder_of(root), None, given_data.is_config(data))
    train = [sample for sample in samples if sample.split != "val"]
    given = labelled.read(chosen, train, None if by is None else column, shape)
    told = {key: value for key, value in how.items() if value is not None}
    job = augment.Job(generator, given, by, per_class, seed, told)
    augment.check(job, least, share)
    fitted = {"least": least, "share": share, "steps": judge_steps, "flip": flip}
    asked = {"least": least, "share": share, "judge_steps": judge_steps, "flip": flip, "sampling": told}
    about = {"data": given.digest, "per_class": per_class, "by": by, "real": real, "seed": seed, **asked}
    made_images.begin(out, generator, [], about)
    if given.generated:
        print(f"augment: {many(given.generated, 'image')} of {data} marked as generated: left out", flush=True)
    sure = augment.fit(job, root / "extractors", **fitted)
    made = augment.augment(job, sure, out, about, real)
    entries = [entry for entry in made["shards"].values() if "drawn" in entry]
    images, passed, drawn = (sum(entry[key] for entry in entries) for key in ("images", "passed", "drawn"))
    facts = sure.facts
    counts = {value: sum(e["images"] for e in entries if e["value"] == value) for value in given.classes}
    short = [f"{value} ({count})" for value, count in counts.items() if count < per_class]
    said = (
        f"{many(images, 'image')} of {many(len(given.classes), 'class', 'classes')} in {out}; {passed:,} of {drawn:,} "
        f"drawn pass: confidence {facts['least']:.3g} or more, as {facts['share_of_real']:.0%} of "
        f"{many(facts['unseen_images'], 'real image')} have that the judge had not seen"
    )
    print(said, flush=True)
    if short:
        print(f"fewer than asked for, as too few passed: {', '.join(short)}; give a lower --least", flush=True)
    figures = {"images": images, "passed": passed, "drawn": drawn, "least": facts["least"]}
    record(root, "augment", out, said, [made_images.GRID, augment.MANIFEST], figures)


if __name__ == "__main__":
    main(command)
