"""`ldm config show|validate`: the resolved config, or the first mistake in it."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import config_options, read


@click.group("config")
def command() -> None:
    """Show or check a config."""


@command.command()
@config_options
def show(path: Path, overrides: tuple[str, ...]) -> None:
    """Print the config with all defaults and overrides in place."""
    from pipeline.config import dump

    print(dump(read(path, overrides)), end="")


@command.command()
@config_options
def validate(path: Path, overrides: tuple[str, ...]) -> None:
    """Say whether the config is valid; exit code 2 and one line if not."""
    from pipeline.planning import fits

    config = read(path, overrides, warn=True)
    for line in fits.needs_gpu(config):
        print(f"warning: {line}")
    print(f"{path}: valid")


if __name__ == "__main__":
    main(command)
