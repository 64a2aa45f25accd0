"""`ldm audit`: whether a model has kept its training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jobs.cli import main
from jobs.common import PATH, PLACE


@click.command("audit")
@click.argument("model", type=PLACE)
@click.option("--out", required=True, type=PATH, help="Folder for report.json, report.md and copies.png.")
@click.option(
    "-n",
    "--count",
    default=1000,
    show_default=True,
    type=click.IntRange(20),
    help="Samples, and images of either split, at most.",
)
@click.option("--reference", default=None, type=PLACE, help="A model of other images, for how hard an image is.")
@click.option("--steps", default=None, type=click.IntRange(1), help="Steps of the sampler; default: the model's.")
@click.option("--guidance", default=None, type=click.FloatRange(0), help="Guidance scale; default: the model's.")
@click.option("--batch-size", default=None, type=click.IntRange(1), help="Images at once; default: the model's.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of noises and samples.")
@click.option("--weights", default=None, type=PLACE, help="Other weights of the denoiser, as of `ldm sample`.")
@click.option("--root", default="runs", type=PATH, help="Where the run that made MODEL lies.")
def command(
    model: str, out: Path, count: int, reference: str | None, seed: int, weights: str | None, root: Path, **how: Any
) -> None:
    """Say what MODEL gives away of its training images: whether they can be told from held-out ones by its errors, and
    whether its samples are copies of them. The run's data is found under --root."""
    from pipeline.applications.audit import audit
    from pipeline.applications.recorded import record
    from pipeline.evaluation.audit_report import figures, lines
    from pipeline.generate.folder import load_pretrained

    generator = load_pretrained(model, root=root, weights=weights)
    generator.pictures_only("`ldm audit`")
    other = load_pretrained(reference, root=root) if reference else None
    given = {name: value for name, value in how.items() if value is not None}
    report = audit(generator, out, root, count, seed, other, **given)
    print("\n".join(lines(report)))
    print(f"the most exposed are named in {out / 'report.md'}, and beside each other in {out / 'copies.png'}")
    record(root, "audit", out, "\n\n".join(lines(report)), ["copies.png"], figures(report))


if __name__ == "__main__":
    main(command)
