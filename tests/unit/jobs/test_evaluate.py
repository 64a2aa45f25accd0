"""`ldm evaluate`: which options go together."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.evaluate import command
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resize"], "belong to --images"),
        (["--out", "report.json"], "belong to --images"),
        (["--images", "x", "--dry-run"], "leave them out with --images"),
        (["--images", "x", "--rebuild", "evaluate"], "leave them out with --images"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(command, ["--config", str(tmp_path / "x.yaml"), *arguments])
    assert isinstance(result.exception, UserError) and words in str(result.exception)


def test_the_folder_is_looked_at_before_anything_runs(tmp_path: Path) -> None:
    config = Path(__file__).parents[3] / "jobs" / "configs" / "digits.yaml"
    arguments = ["--config", str(config), "--images", str(tmp_path), f"run.root={tmp_path / 'runs'}"]
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, UserError) and "holds no images" in str(result.exception)
    assert not (tmp_path / "runs").exists()
