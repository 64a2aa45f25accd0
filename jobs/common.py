"""Options and output that several verbs share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.stages.graph import Done


class Place(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A path, or what may be one: `~` and `$VAR` are put in where the shell has left them (`--out=~/x`)."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from pipeline.files import expanded

        try:
            return expanded(str(value))
        except ValueError as error:
            self.fail(f"{value}: {error}", param, ctx)


class PathPlace(Place):
    """The same as a Path. Shells complete it as a file's name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return Path(super().convert(value, param, ctx))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


PLACE, PATH = Place(), PathPlace()


def numbers(option: str, text: str, kind: Callable[[str], Any] = float) -> list[Any]:
    """Numbers separated by commas. UserError for what is none, and for two that are written alike."""
    from pipeline.errors import UserError

    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        whole = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{option} {text}: expected {whole}, separated by commas") from None
    if len({f"{value:g}" for value in found}) < len(found):
        raise UserError(f"{option} {text}: names a number twice")
    return found


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """What may follow on the command line: the config's file, config keys and their values."""
    from jobs.completion import complete_override

    return complete_override(ctx, param, incomplete)


def config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The config's file (`FILE` or `--config FILE`) and overrides `KEY=VALUE`; calls with `path` and `overrides`."""

    @functools.wraps(function)
    def command(path: Path | None, overrides: tuple[str, ...], *rest: Any, **more: Any) -> Any:
        return function(*config_and_overrides(path, overrides), *rest, **more)

    words = click.argument("overrides", nargs=-1, metavar="CONFIG.yaml [KEY=VALUE]...", shell_complete=complete)
    option = click.option("--config", "path", type=PATH, help="The YAML config, by an option.")
    return option(words(command))


def config_and_overrides(path: Path | None, words: Sequence[str], what: str = "config") -> tuple[Path, tuple[str, ...]]:
    """The file and the overrides among `words`: a word without `=`, or the first if it is a file, is the file.

    path: the file if an option has named it; then all words are overrides, and a wrong one is refused as such.
    """
    words = tuple(words)
    if path is not None:
        return path, words
    files = [i for i, word in enumerate(words) if "=" not in word or (i == 0 and Path(word).is_file())]
    context = click.get_current_context(silent=True)
    if not files:
        raise click.UsageError(f"Missing the {what}'s file, such as my.yaml", context)
    if len(files) > 1:
        first, second = (words[i] for i in files[:2])
        raise click.UsageError(f"Two files, {first} and {second}: give one {what}, then KEY=VALUE", context)
    (at,) = files
    return PATH.convert(words[at], None, context), (*words[:at], *words[at + 1 :])


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


def read(path: Path, overrides: Sequence[str], warn: bool = False) -> Config:
    """The config, with the options of its models checked as well. warn: say what will not be as somebody wants it."""
    from pipeline import config
    from pipeline.errors import UserError
    from pipeline.planning import doubts, fits

    loaded = config.load(path, overrides)
    try:
        fits.check_models(loaded)
    except UserError as error:
        where = config.place(path, overrides, str(error))
        raise UserError(f"{where}: {error}" if where else str(error)) from None
    for line in doubts.doubts(loaded) if warn else ():
        print(f"warning: {line}", flush=True)  # an error, which may follow, is the one line on stderr
    return loaded


def stage_command(stage: str, text: str) -> click.Command:
    """The verb that runs everything up to a stage."""

    @click.command(stage, help=text)
    @run_options
    def command(path: Path, overrides: tuple[str, ...], dry_run: bool, rebuild: tuple[str, ...], if_busy: Any) -> None:
        from pipeline.errors import UserError
        from pipeline.schema.names import STAGES

        for name in rebuild:
            if name not in STAGES:
                raise UserError(f"--rebuild {name}: expected one of {', '.join(STAGES)}")
        config = read(path, overrides, warn=not dry_run)
        if dry_run:
            from pipeline.planning.forecast import forecast

            print(forecast(config))
            return
        run_stages(config, path, overrides, stage, rebuild, if_busy)

    return command


def run_stages(
    config: Config,
    path: Path,
    overrides: Sequence[str],
    stage: str = "register",
    rebuild: Sequence[str] = (),
    if_busy: Any = "refuse",
) -> None:
    """Run everything up to a stage; print what was done, and what may come next."""
    from pipeline.cluster.stopping import Stopped
    from pipeline.errors import Notice
    from pipeline.stages import graph

    try:
        done = graph.run(config, stage, rebuild, if_busy)
        table(done, config)
        print("\n".join(following([d.artifact.stage for d in done], config, path, overrides)))
    except Stopped as stopped:
        raise Notice if stopped.again else KeyboardInterrupt from None


def table(done: Sequence[Done], config: Config) -> None:
    """What was done, one row a stage, with the page of its run where one is served."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.tracking.links import run_url
    from pipeline.tracking.runs import run_key

    pages = [run_url(config.run.root, run_key(d.artifact), config.tracking.uri) for d in done]
    shown = Table(
        "stage", "", "time", "key figure", "artifact", *(["link"] if any(pages) else []), box=None, pad_edge=False
    )
    for d, page in zip(done, pages, strict=True):
        state = "cached" if d.cached else "ran"
        row = [d.artifact.stage, state, f"{d.seconds:.0f} s", d.headline, d.artifact.fingerprint]
        shown.add_row(*row, *([page or "-"] if any(pages) else []))
    Console(width=None if Console().is_terminal else 260, soft_wrap=True).print(shown)


def following(done: Sequence[str], config: Config, path: Path, overrides: Sequence[str]) -> list[str]:
    """The commands that may come next, after these stages of a config; the last words of a verb."""
    import importlib.util
    import shlex

    root = [] if config.run.root == "runs" else ["--root", config.run.root]
    pages = ["ldm", "ui"] if importlib.util.find_spec("streamlit") else ["ldm", "mlflow", "ui"]  # the extra `ui`
    commands = []
    if "register" not in done:
        commands.append((["ldm", "run", str(path), *overrides], "the other stages"))
    if "diffusion" in done:
        commands.append((["ldm", "sample", config.run.name, "--out", "samples", *root], "samples of this model"))
    commands.append(([*pages, *root], "curves and images in a browser"))
    texts = [shlex.join(words) for words, _ in commands]
    width = max(map(len, texts))
    return ["next:", *(f"  {text:{width}}  # {what}" for text, (_, what) in zip(texts, commands, strict=True))]
