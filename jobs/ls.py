"""`ldm ls`: the artifacts under a root: fingerprints, sizes, what each is, and who uses it."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH


@click.command("ls")
@click.option("--root", default="runs", type=PATH, help="Folder of the artifacts.")
@click.option("--stage", default=None, help="Artifacts of this stage only.")
@click.option("--runs", is_flag=True, help="Runs instead of artifacts.")
def command(root: Path, stage: str | None, runs: bool) -> None:
    """List artifacts (or --runs), with sizes and who uses what."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    from pipeline.errors import UserError
    from pipeline.past import history, inventory
    from pipeline.schema.names import STAGES
    from pipeline.stages import graph

    if not (root / "artifacts").is_dir():
        raise UserError(f"{root}: holds no artifacts; give the `run.root` of a config by --root")
    if stage is not None and stage not in STAGES:
        raise UserError(f"--stage {stage}: expected one of {', '.join(STAGES)}")
    console = Console(width=None if Console().is_terminal else 260, soft_wrap=True)
    if runs:
        table = Table("run", "key", "begun", "ended as", "stages", box=None, pad_edge=False)
        for past in history.pipelines(root):
            table.add_row(past.name, past.key, history.when(past.started_ms), past.status, ", ".join(past.stages))
        console.print(table)
        return
    table = Table(
        "stage", "fingerprint", "content", "size", "work", "made", "what", "used by", box=None, pad_edge=False
    )
    found = [item for item in inventory.items(root) if stage in (None, item.stage)]
    for item in found:
        what = graph.module(item.stage).headline(item.manifest["summary"]) if item.state == "finished" else item.state
        sizes = (decimal(item.bytes), decimal(item.work_bytes))
        users = ", ".join(item.used_by) or "nobody"
        table.add_row(item.stage, item.fingerprint, item.content, *sizes, history.when(item.made_ms), what, users)
    console.print(table)
    total = sum(item.bytes + item.work_bytes for item in found)
    rest = {name: inventory.size(root / name) for name in ("latents", "extractors", "set-aside", "mlartifacts")}
    shown = "; ".join(f"{name} {decimal(size)}" for name, size in rest.items() if size)
    print(f"{len(found)} artifacts, {decimal(total)}" + (f"; beside them {shown}" if shown else ""))


if __name__ == "__main__":
    main(command)
