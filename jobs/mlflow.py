"""`ldm mlflow ui|sync`: the tracker's pages in a browser, and what a tracker that was down has missed."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH, PLACE

root_option = click.option("--root", default="runs", type=PATH, help="`run.root` of the config.")
uri_option = click.option(
    "--uri", default=None, type=PLACE, help="Tracker's address; default: MLFLOW_TRACKING_URI, or SQLite in the root."
)


@click.group("mlflow")
def command() -> None:
    """Open the tracker's pages, or send it what it missed."""


@command.command()
@root_option
@uri_option
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port on the loopback.")
def ui(root: Path, uri: str | None, port: int) -> None:
    """Serve MLflow's pages on this machine until Ctrl-C; prints the link to the comparison of runs."""
    from pipeline.tracking.server import serve

    serve(root, port, uri)


@command.command()
@root_option
@uri_option
def sync(root: Path, uri: str | None) -> None:
    """Send the tracker what it has missed. Sending twice does no harm."""
    from pipeline.errors import UserError
    from pipeline.tracking.links import resolve_uri, tracking_folder
    from pipeline.tracking.tracker import refused_message
    from pipeline.tracking.tracker import sync as send

    if not tracking_folder(root).exists():
        raise UserError(f"{root}: nothing has been tracked here yet; give the `run.root` of a config by --root")
    counts = send(root, uri)
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    if counts["refused"]:
        print(refused_message(root, resolve_uri(root, uri)))


if __name__ == "__main__":
    main(command)
