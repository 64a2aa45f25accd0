"""`ldm lineage RUN|ARTIFACT|models:/NAME@ALIAS`: what it was made of; `--uses KEY`: the models an image went into."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH, PLACE


@click.command("lineage")
@click.argument("what", required=False, metavar="RUN|ARTIFACT|MODEL", type=PLACE)
@click.option("--uses", "key", metavar="KEY", help="Instead: which models the image of this key went into.")
@click.option("--root", default="runs", type=PATH, help="`run.root` of the runs.")
@click.option(
    "--uri", default=None, type=PLACE, help="Tracker of models:/; default: MLFLOW_TRACKING_URI, or the root's."
)
@click.option("--shards", is_flag=True, help="Name every image shard.")
def command(what: str | None, key: str | None, root: Path, uri: str | None, shards: bool) -> None:
    """Print the graph from image shards to scores, by content digest, of a run, an artifact or a model."""
    from pipeline.errors import UserError
    from pipeline.past import lineage
    from pipeline.stages import graph

    if (what is None) == (key is None):
        raise UserError("give a run, an artifact or a model; or --uses KEY for an image")
    if key is not None:
        print(lineage.uses(root, key))
    else:
        print(lineage.tree(*lineage.artifacts_of(root, str(what), uri), graph.headline, every_shard=shards))


if __name__ == "__main__":
    main(command)
