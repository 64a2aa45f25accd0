"""`ldm chat`: a talk with a model of replies, in the terminal or from a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from jobs.cli import main
from jobs.common import PATH, PLACE


@click.command("chat")
@click.argument("model", type=PLACE)
@click.option("--steps", default=None, type=click.IntRange(1), help="Steps of the sampler; default: the model's.")
@click.option("--guidance", default=None, type=click.FloatRange(0), help="Guidance scale; default: the model's.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed; others, other replies.")
@click.option("--root", default="runs", type=PATH, help="Where runs and MLflow's data base lie.")
def command(model: str, steps: int | None, guidance: float | None, seed: int, root: Path) -> None:
    """Talk with MODEL, which was trained on replies (`data.source.before`): a line in, a line out, up to the end of the
    input (Ctrl-D). It is told as many of the last turns as it read in training; the same lines and seed give the same
    replies."""
    from pipeline.applications.chat import lines_of, replies
    from pipeline.errors import for_terminal
    from pipeline.generate.folder import load_pretrained

    how: dict[str, Any] = {key: value for key, value in (("steps", steps), ("guidance", guidance)) if value is not None}
    generator, typed = load_pretrained(model, root=root), sys.stdin.isatty()

    def asked() -> Any:
        """The lines, each behind a mark where a person types them."""
        lines = lines_of(sys.stdin.buffer, lambda what: print(what, file=sys.stderr, flush=True))
        while True:
            if typed:
                print("> ", end="", flush=True)
            line = next(lines, None)
            if line is None:
                return
            yield line

    for said in replies(generator, asked(), seed, **how):
        print(for_terminal(said), flush=True)
    if typed:
        print()


if __name__ == "__main__":
    main(command)
