"""`ldm init --source DIR|FILE`: look at images and write a commented config that runs on them unedited."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PLACE


@click.command("init")
@click.option("--source", required=True, type=PLACE, help="Folder, table, arrays, tars ('DIR/*.tar'), or `digits`.")
@click.option("-o", "--output", default=None, type=PLACE, help="File to write; default: NAME.yaml; `-`: print it.")
@click.option("--name", default=None, help="Name of the run; default: the folder's, or the file's.")
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", help="What will train.")
@click.option("--quick", is_flag=True, help="A config that ends in minutes, to see all stages work.")
def command(source: str, output: str | None, name: str | None, device: str, quick: bool) -> None:
    """Look at the images of a folder or file, and write a config that runs on them, with the reason for each choice."""
    from dataclasses import replace

    from pipeline.config import load
    from pipeline.errors import UserError, many
    from pipeline.files import atomic_write, plain
    from pipeline.planning import starter, starter_clips, starter_sound, starter_text
    from pipeline.planning.fits import check_models
    from pipeline.planning.look import look
    from pipeline.planning.starter_told import captioned

    source = str(plain(source)) if ".." in Path(source).parts and "://" not in source else source
    path = Path(source)
    beside = "*" in source or "ubyte" in path.name or path.suffix in (".csv", ".tsv", ".jsonl")
    clips = starter_clips.look(source)
    sounds = starter_sound.look(source) if clips is None else None
    text_found = starter_text.look(source) if clips is None and sounds is None else None
    named = name or (path.parent.name if beside and text_found is None else "") or path.stem or "images"
    target = None if output == "-" else Path(output or f"{named}.yaml")
    if target is not None and target.exists():
        raise UserError(f"{target}: is there already; give another name by -o, or move it away")
    found = look(source) if clips is None and sounds is None and text_found is None else None
    machine, run_name = starter.this_machine(), starter.run_name(named)
    if device == "cpu":
        machine = replace(machine, gpus=0, gpu_bytes=0)
    elif device == "gpu" and not machine.gpus:  # the one of a cluster's nodes: what it has is not known here
        machine = replace(machine, gpus=1, gpu_bytes=int(16e9))
    if clips is not None:
        text, lines = starter_clips.write_config(clips, machine, run_name, quick), starter_clips.told(clips)
    elif sounds is not None:
        text, lines = starter_sound.write_config(sounds, machine, run_name, quick), starter_sound.told(sounds)
    elif found is None:
        assert text_found
        text = starter_text.write_config(text_found, machine, run_name, quick)
        lines = starter_text.told(text_found)
    else:
        chosen = starter.plan(found, machine, run_name, quick)
        text = starter.write_config(found, chosen, machine)
        classes = many(len(found.classes), "class", "classes")
        shape = f"{chosen.size}x{chosen.size}x{chosen.channels}"
        captions = ", captions" if captioned(found) else ""
        lines = [f"{many(found.count, 'image')}, {classes}{captions}, shown at {shape}", *chosen.told, *found.notes]
    if target is None:
        print(text, end="")
        return
    atomic_write(target, text)
    check_models(load(target))
    print("\n".join(lines))
    command = f"ldm run {shlex.quote(str(target))}"
    print(f"{target} is written. Read it, then:")
    print(f"  {command} --dry-run   # what would run, and the disk it needs")
    print(f"  {command}             # goes on where it was, if it is stopped")


if __name__ == "__main__":
    main(command)
