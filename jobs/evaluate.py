"""`ldm evaluate`: measure samples and reconstructions; with --images, a folder of images from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jobs.cli import main
from jobs.common import PATH, read, run_options, stage_command

stages = stage_command("evaluate", "Measure samples and reconstructions, and run what comes before.")


@click.command("evaluate")
@run_options
@click.option("--images", type=PATH, help="Measure the images of this folder instead.")
@click.option("--resize", is_flag=True, help="With --images: bring them to the data set's size first.")
@click.option("--out", type=PATH, help="With --images: write the report to this JSON file.")
def command(
    path: Path, overrides: tuple[str, ...], images: Path | None, resize: bool, out: Path | None, **rest: Any
) -> None:
    """Measure samples and reconstructions, and run what comes before; or measure a folder of images from elsewhere
    against the data set of the config."""
    from pipeline.errors import UserError

    if images is None:
        if resize or out:
            raise UserError("--resize and --out belong to --images; leave them out, or give a folder of images")
        assert stages.callback
        stages.callback(path, overrides, **rest)
        return
    if any(rest[name] for name in ("dry_run", "rebuild")):
        raise UserError("--dry-run and --rebuild are for stages; leave them out with --images")
    from pipeline.applications.score import score, text

    print(text(score(images, read(path, overrides), resize, out)))


if __name__ == "__main__":
    main(command)
