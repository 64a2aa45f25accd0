"""slurm/sweep_ldm.sh: what it hands to train_ldm.sh for a task of an array, and what it refuses."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "slurm" / "sweep_ldm.sh"


def run(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "LDM_"))}
    command = ["bash", str(SCRIPT), *arguments]
    known |= {"SLURM_SUBMIT_DIR": str(home)} | environment
    return subprocess.run(command, env=known, capture_output=True, text=True, check=False)


def test_an_array_task_runs_its_element_in_the_batch_shell(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "train_ldm.sh").write_text('echo "$LDM_VERB:$*"\nexit 7\n')
    said = run(tmp_path, "s.yaml", "run.root=/data", SLURM_ARRAY_TASK_ID="3")
    assert said.stdout == "sweep:s.yaml run.root=/data --element 3 --if-busy wait\n"
    assert said.returncode == 7  # the pipeline's code is the task's


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    for arguments, environment, what in (
        ([], {"SLURM_ARRAY_TASK_ID": "0"}, "usage: sbatch --array"),
        (["s.yaml"], {}, "give sbatch --array=0-N"),
        (["s.yaml"], {"SLURM_ARRAY_TASK_ID": "0"}, "train_ldm.sh is missing"),
    ):
        said = run(tmp_path, *arguments, **environment)
        assert said.returncode == 2 and what in said.stderr and len(said.stderr.splitlines()) == 1
