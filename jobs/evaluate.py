"""`ldm evaluate`: Measure samples and reconstructions, and run what comes before."""

from __future__ import annotations

from jobs.cli import main
from jobs.common import stage_command

command = stage_command("evaluate", "Measure samples and reconstructions, and run what comes before.")

if __name__ == "__main__":
    main(command)
