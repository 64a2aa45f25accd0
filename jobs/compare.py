"""`ldm compare RUN RUN...`: which run is better, what differs in config and figures; `--html`: a page with curves."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH


@click.command("compare")
@click.argument("runs", nargs=-1, metavar="RUN RUN...")
@click.option("--root", default="runs", type=PATH, help="`run.root` of the runs.")
@click.option("--html", type=PATH, help="Write one self-contained page with curves and grids.")
@click.option("--all", "every", is_flag=True, help="All metrics, also those that are neither good nor bad.")
def command(runs: tuple[str, ...], root: Path, html: Path | None, every: bool) -> None:
    """Compare runs: name, key (or its first characters), MLflow id, or ROOT/pipelines/KEY. The verdict comes first."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.past import compare

    compared = compare.sides(root, runs)
    found = compare.verdict(compared)
    console = Console(width=None if Console().is_terminal else 200, soft_wrap=True)
    console.print(found.text, style="bold", markup=False, highlight=False)
    for line in found.why_not:
        console.print(f"  {line}", markup=False, highlight=False)
    for stage, key in compare.shared(compared).items():
        console.print(f"  same {stage}: {'/'.join(key.split('/')[:2])}", markup=False, highlight=False)
    labels = [side.label for side in compared]
    config = Table("config key", *labels, box=None, pad_edge=False, title="what differs", title_justify="left")
    for key, values in compare.differences([side.past for side in compared]).items():
        config.add_row(key, *values)
    figures = Table("metric (last value)", *labels, box=None, pad_edge=False, title="figures", title_justify="left")
    for name, scored in compare.scores(compared, every).items():
        winner = compare.best(name, scored, compared)
        cells = ["-" if v is None else f"{v:.4g}{' *' if i == winner else ''}" for i, v in enumerate(scored)]
        figures.add_row(name, *cells)
    console.print(config, "", figures, "* the better one, where they can be compared", sep="\n")
    if html:
        from pipeline.pages.compare_page import write

        write(html, compared, found)
        console.print(f"page: {html.absolute()}", markup=False, highlight=False)


if __name__ == "__main__":
    main(command)
