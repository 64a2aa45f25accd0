"""Options and output that several verbs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.stages.graph import Done


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """What may follow on the command line: config keys and their values."""
    from jobs.completion import complete_override

    return complete_override(ctx, param, incomplete)


def config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--config FILE` and overrides `KEY=VALUE`."""
    function = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete)(function)
    return click.option("--config", "path", required=True, type=click.Path(path_type=Path), help="YAML config.")(
        function
    )


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What every verb that runs stages takes."""
    function = click.option(
        "--if-busy",
        type=click.Choice(["refuse", "wait"]),
        default="refuse",
        help="What to do if another process writes.",
    )(function)
    function = click.option("--rebuild", multiple=True, metavar="STAGE", help="Set this stage's artifact aside first.")(
        function
    )
    function = click.option("--dry-run", is_flag=True, help="Show what would run, and what it needs.")(function)
    return config_options(function)


def read(path: Path, overrides: Sequence[str]) -> Config:
    """The config, with the options of its models checked as well."""
    from pipeline import config
    from pipeline.planning import fits

    loaded = config.load(path, overrides)
    fits.check_models(loaded)
    return loaded


def stage_command(stage: str, text: str) -> click.Command:
    """The verb that runs everything up to a stage."""

    @click.command(stage, help=text)
    @run_options
    def command(path: Path, overrides: tuple[str, ...], dry_run: bool, rebuild: tuple[str, ...], if_busy: Any) -> None:
        from pipeline.cluster.stopping import Stopped
        from pipeline.errors import Notice, UserError
        from pipeline.schema.names import STAGES
        from pipeline.stages import graph

        for name in rebuild:
            if name not in STAGES:
                raise UserError(f"--rebuild {name}: expected one of {', '.join(STAGES)}")
        config = read(path, overrides)
        if dry_run:
            from pipeline.planning.forecast import forecast

            print(forecast(config))
            return
        try:
            table(graph.run(config, stage, rebuild, if_busy), config)
        except Stopped as stopped:
            raise Notice if stopped.again else KeyboardInterrupt from None

    return command


def table(done: Sequence[Done], config: Config) -> None:
    """What was done, one row a stage, with the page of its run (`make ui` serves it)."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.tracking.links import run_url
    from pipeline.tracking.runs import run_key

    shown = Table("stage", "", "time", "key figure", "artifact", "link", box=None, pad_edge=False)
    for d in done:
        link = run_url(config.run.root, run_key(d.artifact), config.tracking.uri) or "-"
        state = "cached" if d.cached else "ran"
        shown.add_row(d.artifact.stage, state, f"{d.seconds:.0f} s", d.headline, d.artifact.fingerprint, link)
    Console(width=None if Console().is_terminal else 260, soft_wrap=True).print(shown)
