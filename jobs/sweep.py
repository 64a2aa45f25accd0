"""`ldm sweep SWEEP.yaml`: one config with many values, and which of them is best."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from jobs.cli import main
from jobs.common import PATH, complete, config_and_overrides


@click.command("sweep")
@click.argument("words", nargs=-1, metavar="SWEEP.yaml [KEY=VALUE]...", shell_complete=complete)
@click.option("--config", type=PATH, help="SWEEP.yaml, where a script calls all verbs alike.")
@click.option("--element", type=click.IntRange(0), help="Only this element, from 0: what a task of a job array runs.")
@click.option("--no-prune", is_flag=True, help="Stop nobody early; pruned elements go on to their end.")
@click.option("--dry-run", is_flag=True, help="List the elements, what they share, what is cached, what it needs.")
@click.option("--report", is_flag=True, help="The table and the winner from what has finished.")
@click.option("--if-busy", type=click.Choice(["refuse", "wait"]), default="refuse", help="If another has the element.")
def command(
    words: tuple[str, ...],
    config: Path | None,
    element: int | None,
    no_prune: bool,
    dry_run: bool,
    report: bool,
    if_busy: Any,
) -> None:
    """Run the elements of a sweep, one after the other, and name the winner. The same command goes on after a stop.

    What elements share (data, autoencoder, latents) is made once, also by several processes at a time: start it in as
    many as there is room for, each takes elements that no other has. Overrides are config keys, common to all elements.
    """
    from pipeline.cluster.stopping import Stopped
    from pipeline.data import listing
    from pipeline.errors import Notice, UserError, many
    from pipeline.sweeps.plan import plan
    from pipeline.sweeps.report import markdown, points
    from pipeline.sweeps.run import run
    from pipeline.sweeps.study import check, read

    path, overrides = config_and_overrides(config, words, "sweep")
    with listing.forgetting() if dry_run else nullcontext():
        study = read(path, overrides)
    if element is not None and element >= study.count:
        raise UserError(f"--element {element}: {path} has {study.count} elements, numbered from 0")
    numbers = range(study.count) if element is None else [element]
    if dry_run:
        with listing.forgetting():
            print(plan(study))
        return
    if not report:
        check(study, numbers)
        try:
            busy = run(study, numbers, if_busy, prune=not no_prune)
        except Stopped as stopped:
            raise Notice if stopped.again else KeyboardInterrupt from None
        if busy:
            print(f"{many(len(busy), 'element')} run by other processes now: {', '.join(map(str, busy))}", flush=True)
    print(markdown(study, points(study)))
    failed = [n for n in numbers if (study.folder.result(n) or {}).get("state") == "failed"]
    if failed and not report:
        raise UserError(f"{many(len(failed), 'element')} failed: {', '.join(map(str, failed))}; the table says why")


if __name__ == "__main__":
    main(command)
