"""`ldm preflight`: asks machines, network, storage, tracker and one real step of each stage before a run begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.cli import main
from jobs.common import config_options, read

if TYPE_CHECKING:
    from pipeline.preflight import Report

COLOURS = {"ok": "green", "warning": "yellow", "refused": "red", "skipped": "dim"}


@click.command("preflight")
@config_options
@click.option("--json", "file", default=None, type=click.Path(path_type=Path), help="Also write all figures here.")
@click.option("--require-tracker", is_flag=True, help="Refuse if the tracker is down; training itself never needs it.")
def command(path: Path, overrides: tuple[str, ...], file: Path | None, require_tracker: bool) -> None:
    """Check what a run of this config would stumble over, on the machines it would run on, in under two minutes.

    GPUs, memory, disks, clocks, the shared root, ports, collectives, storage, tracker, and a real step of each stage.
    Names the bottleneck, forecasts hours and disk; exit code 2 if the run cannot work.
    """
    from pipeline.cluster import Stopped
    from pipeline.errors import UserError
    from pipeline.preflight import preflight

    try:
        report = preflight(read(path, overrides), require_tracker)
    except Stopped:
        raise KeyboardInterrupt from None
    table(report)
    if file:
        from dataclasses import asdict

        from pipeline.files import write_json

        write_json(file, asdict(report))
    if report.refused:
        first, *others = report.refused
        raise UserError(f"preflight: {first}" + (f" (and {len(others)} more)" if others else ""))


def table(report: Report) -> None:
    """All findings, one row each. In a log they stand there already, a line each."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if console.is_terminal:
        shown = Table("check", "node", "", "what", box=None, pad_edge=False)
        for finding in report.findings:
            colour = COLOURS[finding.state]
            shown.add_row(finding.check, finding.node, f"[{colour}]{finding.state}[/]", escape(finding.text))
        console.print(shown)
    states = [finding.state for finding in report.findings]
    said = ", ".join(f"{states.count(state)} {state}" for state in COLOURS if state in states)  # type: ignore[arg-type]
    print(f"preflight: {said}, in {report.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(command)
