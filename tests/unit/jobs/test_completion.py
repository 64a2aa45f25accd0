"""Completion of the command line: keys section by section, values of a choice, in the parts that shells hand over."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from jobs.cli import group


def offered(*words: str, typed: str) -> list[str]:
    return [item.value for item in ShellComplete(group, {}, "ldm", "_LDM_COMPLETE").get_completions([*words], typed)]


def test_verbs_and_options() -> None:
    assert offered(typed="li") == ["lineage"]
    assert "--html" in offered("compare", typed="--h")


@pytest.mark.parametrize(
    ("words", "typed", "expected"),
    [
        ((), "diff", ["diffusion."]),
        ((), "diffusion.training.sch", ["diffusion.training.schedule="]),
        ((), "data.split.", [f"data.split.{key}=" for key in ("by", "column", "val_fraction", "folds", "fold")]),
        ((), "diffusion.training.schedule=c", [f"diffusion.training.schedule={v}" for v in ("constant", "cosine")]),
        (("diffusion.training.schedule", "="), "c", ["constant", "cosine"]),  # bash parts words at `=`
        (("diffusion.training.schedule",), "", ["constant", "cosine", "wsd"]),
        (("data.size=32",), "data.augment.fl", ["data.augment.flip="]),
        ((), "nosuch", []),
    ],
)
def test_config_keys_and_values(words: tuple[str, ...], typed: str, expected: list[str]) -> None:
    assert offered("run", "--config", "x.yaml", *words, typed=typed) == expected


def test_explain_completes_keys() -> None:
    assert "data.split.by" in offered("explain", typed="data.split.")


def test_bash_runs_the_script(tmp_path: Path) -> None:
    if not shutil.which("bash"):
        pytest.skip("no bash here")
    ldm = tmp_path / "ldm"
    start = "import sys; sys.argv[0] = 'ldm'; from jobs.cli import main; main()"
    ldm.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{start}" "$@"\n')
    ldm.chmod(0o755)
    script = (
        'eval "$(ldm completion bash)"; COMP_WORDS=(ldm run --config x evaluate.sam); COMP_CWORD=4; '
        '_ldm_completion ldm 2>/dev/null; echo "${COMPREPLY[@]}"'
    )
    here = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(["bash", "-c", script], env=os.environ | here, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["evaluate.samples=", "evaluate.sampler="]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_of_all_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.completion import command

    command.main([shell], standalone_mode=False)
    assert "_LDM_COMPLETE" in capsys.readouterr().out
    assert isinstance(command, click.Command)
