"""`ldm gc`: what no run, no model and no artifact refers to; says what would go, and removes it with `--delete`."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH, PLACE


@click.command("gc")
@click.option("--root", default="runs", type=PATH, help="Folder of the artifacts.")
@click.option("--uri", default=None, type=PLACE, help="Tracker; default: MLFLOW_TRACKING_URI, or SQLite in the root.")
@click.option("--delete", is_flag=True, help="Remove it; without this nothing is touched.")
@click.option("--keep", multiple=True, metavar="STAGE/FINGERPRINT", help="Keep this artifact and what it was made of.")
def command(root: Path, uri: str | None, delete: bool, keep: tuple[str, ...]) -> None:
    """Find what nothing refers to. A run that was deleted in MLflow (its trash) refers to nothing any more."""
    from rich.filesize import decimal

    from pipeline.errors import UserError
    from pipeline.past import inventory

    if not (root / "artifacts").is_dir():
        raise UserError(f"{root}: holds no artifacts; give the `run.root` of a config by --root")
    tracked = inventory.ask_tracker(root, uri)
    if tracked.trouble:
        print(f"the tracker cannot be asked ({tracked.trouble}): all runs count as there")
        if delete:
            raise UserError(f"--delete needs the tracker, which knows the registered models ({tracked.trouble})")
    found = inventory.garbage(root, tracked, keep)
    for entry in found:
        print(f"{decimal(entry.bytes):>10}  {entry.kind:<10}  {entry.path}: {entry.why}")
    total = decimal(sum(entry.bytes for entry in found))
    if not found:
        print("everything is in use")
    elif not delete:
        print(f"{total} could go; nothing was touched: `ldm gc --delete` removes it")
    else:
        print(f"{decimal(inventory.remove(root, found))} removed")


if __name__ == "__main__":
    main(command)
