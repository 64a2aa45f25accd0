"""`ldm completion SHELL`: the script that lets a shell complete verbs, options, and config keys with their values."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, CompletionItem, ShellComplete, get_completion_class

from jobs.cli import group, main

VARIABLE = "_LDM_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of SHELL; in ~/.bashrc: eval "$(ldm completion bash)"."""
    kind: type[ShellComplete] = get_completion_class(shell) or BashComplete
    script = kind(group, {}, "ldm", VARIABLE).source()
    if shell == "bash":  # no space after a key that goes on: `diffusion.training.`, `diffusion.training.steps=`
        script = script.replace(
            "COMPREPLY+=($value)", "COMPREPLY+=($value); [[ $value == *[.=] ]] && compopt -o nospace"
        )
        assert "nospace" in script, "click's script has changed"
    print(script)


def complete_override(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The config's file, where none was given yet, and `KEY=VALUE`: keys section by section, then the values of a
    choice. Bash hands the parts around `=` over apart."""
    before = [str(word) for word in (ctx.params.get(str(param.name)) or ())]
    if before and before[-1] == "=":
        return values_of(before[-2], incomplete, "") if len(before) > 1 else []
    if before and "=" not in before[-1] and is_key(before[-1]):  # typed is the `=`, which click drops
        return values_of(before[-1], "", "")
    key, equals, value = incomplete.partition("=")
    if equals:
        return values_of(key, value, f"{key}=")
    given = ctx.params.get("path") or ctx.params.get("config") or any(not is_key(word) for word in before)
    file = [] if given else [CompletionItem(incomplete, type="file")]
    return file + keys_below(incomplete, "=")


def keys_below(begun: str, end: str) -> list[CompletionItem]:
    """Keys that begin so, up to their next dot; a whole key ends in `end`."""
    from pipeline.planning.explain import keys

    found: dict[str, CompletionItem] = {}
    for key in keys():
        if key.name.startswith(begun):
            dot = key.name.find(".", len(begun))
            name = key.name + end if dot < 0 else key.name[: dot + 1]
            found.setdefault(name, CompletionItem(name, help=None if dot >= 0 else key.text[:60] or None))
    return list(found.values())


def is_key(word: str) -> bool:
    """Whether a word is a config key, or an override of one."""
    from pipeline.planning.explain import keys

    return any(key.name == word.partition("=")[0] for key in keys())


def values_of(name: str, begun: str, prefix: str) -> list[CompletionItem]:
    """The values of a key that is a choice."""
    from pipeline.planning.explain import keys

    values = dict.fromkeys(value for key in keys() if key.name == name for value in key.values)
    return [CompletionItem(prefix + value) for value in values if value.startswith(begun)]


if __name__ == "__main__":
    main(command)
