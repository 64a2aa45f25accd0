"""`ldm fd`: the Fréchet distance of images from anywhere to statistics in a file, or to other images."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH


@click.command("fd")
@click.argument("images", type=PATH)
@click.argument("reference", type=PATH)
@click.option("--weights", type=PATH, required=True, help="Inception's file, pt_inception-2015-12-05-6726825d.pth.")
@click.option("--digest", help="First digits of its SHA-256, where it is another file than the published one.")
@click.option(
    "--rule",
    type=click.Choice(["clean-fid", "pytorch-fid"]),
    default="clean-fid",
    show_default=True,
    help="How images are resized and scaled: as by the program of this name.",
)
@click.option("--save", type=PATH, help="Write mu and sigma of IMAGES to this .npz.")
def command(images: Path, reference: Path, weights: Path, digest: str | None, rule: str, save: Path | None) -> None:
    """Fréchet distance of IMAGES (a folder, or an .npz with arr_0) to REFERENCE: an .npz with mu and sigma, as
    pytorch-fid and ADM's evaluation have them, or images as well."""
    from pipeline.applications.reference import distance
    from pipeline.evaluation.metrics import features

    found = distance(images, reference, features.inception(weights, digest, rule, "--digest"), save)
    of = "" if found["reference_images"] is None else f" of {found['reference_images']:,} images"
    print(f"Fréchet distance {found['distance']:.6g}: {found['images']:,} images to {reference}{of}")
    print(f"  {found['extractor']}, rule {rule}")
    if found["images"] <= found["features"]:
        print(
            f"  {found['images']:,} images for {found['features']:,} features: the figure is far too large, and falls "
            "with the count; papers take 50,000"
        )
    if save:
        print(f"  written to {save}")


if __name__ == "__main__":
    main(command)
