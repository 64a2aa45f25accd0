"""`ldm preflight`: asks machines, network, storage, tracker and one real step of each stage before a run begins."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH, config_options, read


@click.command("preflight")
@config_options
@click.option("--json", "file", default=None, type=PATH, help="Also write all figures here.")
@click.option("--require-tracker", is_flag=True, help="Refuse if the tracker is down; training itself never needs it.")
def command(path: Path, overrides: tuple[str, ...], file: Path | None, require_tracker: bool) -> None:
    """Check what a run of this config would stumble over, on the machines it would run on, in under two minutes.

    GPUs, memory, disks, clocks, the shared root, ports, collectives, storage, tracker, and a real step of each stage.
    Names the bottleneck, forecasts hours and disk; exit code 2 if the run cannot work.
    """
    from pipeline.cluster.stopping import Stopped
    from pipeline.errors import Notice, UserError
    from pipeline.preflight.questions import preflight

    try:
        report = preflight(read(path, overrides, warn=True), require_tracker)
    except Stopped as stopped:
        raise Notice if stopped.again else KeyboardInterrupt from None
    states = [finding.state for finding in report.findings]
    said = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"preflight: {said}, in {report.seconds:.0f} s", flush=True)
    if file:
        from dataclasses import asdict

        from pipeline.files import write_json

        write_json(file, asdict(report))
    if report.refused:
        first, *others = report.refused
        raise UserError(f"preflight: {first}" + (f" (and {len(others)} more)" if others else ""))


if __name__ == "__main__":
    main(command)
