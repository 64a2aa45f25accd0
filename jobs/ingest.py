"""`ldm ingest`: Images to shards with an index."""

from __future__ import annotations

from jobs.cli import main
from jobs.common import stage_command

command = stage_command("ingest", "Images to shards with an index.")

if __name__ == "__main__":
    main(command)
