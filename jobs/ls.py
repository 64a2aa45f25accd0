"""`ldm ls`: the artifacts under a root: fingerprints, sizes, what each is, and who uses it."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.filesize import decimal

from jobs.cli import main
from jobs.common import PATH

if TYPE_CHECKING:
    from pipeline.past.inventory import Item


@click.command("ls")
@click.option("--root", default="runs", type=PATH, help="Folder of the artifacts.")
@click.option("--stage", default=None, help="Artifacts of this stage only.")
@click.option("--runs", is_flag=True, help="Runs instead of artifacts.")
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON, for programs; sizes in bytes, times in ms.")
def command(root: Path, stage: str | None, runs: bool, as_json: bool) -> None:
    """List artifacts (or --runs), with sizes and who uses what.

    On a terminal two lines each; into a pipe a line each, whole, with tabs between.
    """
    from pipeline.errors import UserError, many
    from pipeline.past import history, inventory
    from pipeline.schema.names import STAGES

    if not (root / "artifacts").is_dir():
        raise UserError(f"{root}: holds no artifacts; give the `run.root` of a config by --root")
    if stage is not None and stage not in STAGES:
        raise UserError(f"--stage {stage}: expected one of {', '.join(STAGES)}")
    if runs:
        shown = [
            {
                "run": p.name,
                "key": p.key,
                "begun": p.started_ms,
                "state": p.status,
                "stages": list(p.stages),
            }
            for p in history.pipelines(root)
        ]
        print_rows(shown, as_json, last="stages")
        return
    found = [item for item in inventory.items(root) if stage in (None, item.stage)]
    print_rows([facts(item) for item in found], as_json, last="what")
    if as_json:
        return
    total = sum(item.bytes + item.work_bytes for item in found)
    rest = {name: inventory.size(root / name) for name in ("latents", "extractors", "set-aside", "mlartifacts")}
    shown_rest = ", ".join(f"{name} {decimal(size)}" for name, size in rest.items() if size)
    text = f"{many(len(found), 'artifact')}, {decimal(total)}" + (f"; beside them {shown_rest}" if shown_rest else "")
    print(text, file=sys.stdout if sys.stdout.isatty() else sys.stderr)  # into a pipe rows only


def facts(item: Item) -> dict[str, Any]:
    """A row of `ldm ls`: sizes in bytes, the time in ms."""
    from pipeline.stages import graph

    what = graph.module(item.stage).headline(item.manifest["summary"]) if item.state == "finished" else item.state
    return {
        "stage": item.stage,
        "fingerprint": item.fingerprint,
        "content": item.content,
        "size": item.bytes,
        "work": item.work_bytes,
        "made": item.made_ms,
        "what": what,
        "used_by": item.used_by,
    }


def print_rows(rows: list[dict[str, Any]], as_json: bool, last: str) -> None:
    """Rows as JSON; on a terminal as short columns, with `last` and what else is long in lines below; into a pipe with
    tabs between."""
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    words = [{name: in_words(name, value) for name, value in row.items()} for row in rows]
    names = list(words[0]) if words else []
    if not sys.stdout.isatty():
        for row in ([dict(zip(names, names, strict=True))] if names else []) + words:
            print("\t".join(" ".join(value.split()) for value in row.values()))
        return
    short = [name for name in names if name not in (last, "used_by", "content")]
    widths = {name: max(len(name), *(len(row[name]) for row in words)) for name in short}
    wide = max(40, shutil.get_terminal_size().columns)
    print("  ".join(f"{name:<{widths[name]}}" for name in short).rstrip())
    for row in words:
        print("  ".join(f"{row[name]:<{widths[name]}}" for name in short).rstrip())
        below = row[last] + (f"; used by {row['used_by']}" if "used_by" in row else "")
        print(textwrap.fill(below, wide, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False))


def in_words(name: str, value: Any) -> str:
    """A cell as text."""
    from pipeline.past import history

    if name in ("size", "work"):
        return decimal(value)
    if name in ("made", "begun"):
        return history.when(value)
    return (", ".join(value) or "nobody") if isinstance(value, (list, tuple)) else str(value)


if __name__ == "__main__":
    main(command)
