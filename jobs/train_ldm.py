"""`ldm run`: all stages, from images to a registered model; finished ones are skipped, a stopped one goes on."""

from __future__ import annotations

from jobs.cli import main
from jobs.common import stage_command

command = stage_command(
    "register", "Run all stages, from images to a registered model. The same command goes on after a stop."
)

if __name__ == "__main__":
    main(command)
