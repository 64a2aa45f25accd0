"""`ldm encode`: Encode every image once, and what comes before it."""

from __future__ import annotations

from jobs.cli import main
from jobs.common import stage_command

command = stage_command("encode", "Encode every image once, and what comes before it.")

if __name__ == "__main__":
    main(command)
