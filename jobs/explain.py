"""`ldm explain KEY`: what a config key means, its unit, range and default."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from jobs.cli import main


def complete_key(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Config keys that begin as typed."""
    from jobs.completion import keys_below

    return keys_below(incomplete, "")


@click.command("explain")
@click.argument("key", required=False, shell_complete=complete_key)
def command(key: str | None) -> None:
    """Explain a config KEY (`diffusion.training.clip`), a section (`evaluate`), or a word (`guidance`)."""
    from pipeline.planning.explain import explain

    print(explain(key))


if __name__ == "__main__":
    main(command)
