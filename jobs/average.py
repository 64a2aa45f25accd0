"""`ldm average`: weights averaged over another length of the training than was kept, after it; which length is best."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH, PLACE, complete, config_and_overrides, read


@click.command("average")
@click.argument("what", metavar="RUN|ARTIFACT|MODEL", type=PLACE)
@click.argument("overrides", nargs=-1, metavar="[CONFIG.yaml] [KEY=VALUE]...", shell_complete=complete)
@click.option("--length", type=float, help="Relative length: the spread of the moments averaged over, such as 0.1.")
@click.option("--at", type=click.IntRange(1), help="Let the average end at this many samples; default: the end.")
@click.option("-o", "--out", type=PATH, help="File; default: in the artifact's work/.")
@click.option("--scan", is_flag=True, help="Print the Fréchet distance against length; needs the config.")
@click.option("--lengths", default="0.02,0.05,0.1,0.15,0.2", show_default=True, help="What --scan tries.")
@click.option("--config", type=PATH, help="With --scan: the config, whose `data` and `evaluate` are used.")
@click.option("--root", default="runs", type=PATH, help="`run.root` of the run.")
def command(
    what: str, overrides: tuple[str, ...], length: float | None, at: int | None, out: Path | None, scan: bool,
    lengths: str, config: Path | None, root: Path,
) -> None:  # fmt: skip
    """Make an average of the weights of a run, an artifact or a model from the snapshots stored in training.

    `ldm sample FOLDER --weights length-0.1` and `evaluate.weights=length-0.1` take any length by themselves.
    """
    from pipeline.errors import UserError
    from pipeline.generate import averages
    from pipeline.schema.names import length_name
    from pipeline.training import snapshots

    found = averages.find(what, root)
    if scan:
        if config is None and not any("=" not in word for word in overrides):
            raise UserError("--scan: give the run's config as well; its `data` and `evaluate` say what is compared")
        path, keys = config_and_overrides(config, overrides)
        from pipeline.applications import average_scan

        chosen = [part.strip() for part in lengths.split(",")]
        print(average_scan.table(average_scan.scan(found, read(path, keys), chosen)))
        return
    if length is None or overrides:
        raise UserError("give --length, such as 0.1; or --scan and the config to see which is best")
    recipe = averages.warned(averages.plan(found.path / snapshots.FOLDER, length, at))
    name = length_name(length) + (f"-{recipe.samples:012d}" if at else "")
    file = out or found.path / "work" / "averages" / f"{name}.safetensors"
    if file.suffix != ".safetensors":
        raise UserError(f"-o {file}: expected the name of a .safetensors file")
    averages.make(recipe, file, found.content)
    print(f"{recipe}\n{file}")


if __name__ == "__main__":
    main(command)
