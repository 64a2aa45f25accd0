"""`ldm ui`: MLflow's pages and a page with sliders that makes images, on this machine until Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH, PLACE

port = click.IntRange(1, 65535)


@click.command("ui")
@click.argument("model", required=False, type=PLACE)
@click.option("--root", default="runs", show_default=True, type=PATH, help="`run.root` of the config.")
@click.option("--uri", default=None, type=PLACE, help="Tracker's address; default: MLFLOW_TRACKING_URI, or the root's.")
@click.option("--port", default=None, type=port, help="MLflow's port on the loopback; default: 5000, or a free one.")
@click.option("--page", default=None, type=port, help="The sampling page's port; default: 8501, or a free one.")
def command(model: str | None, root: Path, uri: str | None, port: int | None, page: int | None) -> None:
    """Serve MLflow's pages and the sampling page until Ctrl-C; prints their addresses.

    The sampling page offers all models under the root, and MODEL: a folder or `models:/NAME@ALIAS`. Needs the extra
    `ui`.
    """
    from pipeline.pages.serve import serve

    serve(root, model, port, page, uri)


if __name__ == "__main__":
    main(command)
