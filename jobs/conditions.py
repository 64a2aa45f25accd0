"""`ldm conditions`: Gather attributes, captions and pictures, and what comes before it."""

from __future__ import annotations

from jobs.cli import main
from jobs.common import stage_command

command = stage_command("conditions", "Gather attributes, captions and pictures, and what comes before it.")

if __name__ == "__main__":
    main(command)
