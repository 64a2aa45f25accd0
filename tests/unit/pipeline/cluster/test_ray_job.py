"""What a job of a running Ray cluster is given and told; a whole job is in tests/integration/test_ray.py."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from pipeline import artifacts
from pipeline.cluster import joining
from pipeline.config import load
from pipeline.errors import UserError
from pipeline.stages import graph
from pipeline.tracking import tracker

ROOT = Path(__file__).parents[4]


def test_only_code_and_configs_are_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    """By Ray's own reading of .gitignore and .rayignore."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    excluded = get_excludes_from_ignore_files(ROOT, include_gitignore=True)
    found: list[Path] = []

    def walk(folder: Path) -> None:
        for path in folder.iterdir():
            if not any(leave_out(path) for leave_out in excluded):
                if path.is_dir():
                    walk(path)
                else:
                    found.append(path.relative_to(ROOT))

    walk(ROOT)
    size = sum((ROOT / path).stat().st_size for path in found)
    print(f"shipped: {len(found)} files, {size / 1e6:.2f} MB")
    assert {path.parts[0] for path in found} == {"jobs", "models", "pipeline"}
    assert {path.suffix for path in found} == {".py", ".yaml"} and size < 3e6
    assert Path("jobs/train_ldm.py") in found and Path("jobs/configs/digits.yaml") in found


def test_a_root_in_the_jobs_own_copy_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = load(ROOT / "jobs/configs/digits.yaml", ["run.root=runs"])
    assert Path(graph.absolute(config).run.root).is_absolute()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=r"`run\.root`"):
        graph.absolute(config)
    assert graph.absolute(load(ROOT / "jobs/configs/digits.yaml", [f"run.root={tmp_path}"])).run.root == str(tmp_path)


def test_a_stop_without_time_to_save_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    joining.mind_job_stop()
    assert capsys.readouterr().out == ""  # no job
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    joining.mind_job_stop()
    assert "3 s after its notice" in capsys.readouterr().out
    given = yaml.safe_load((ROOT / "jobs/ray_job.yaml").read_text())["env_vars"]
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", given["RAY_JOB_STOP_WAIT_TIME_S"])
    joining.mind_job_stop()
    assert capsys.readouterr().out == ""


def test_a_revision_may_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_REVISION", "abc123")
    assert artifacts.revision() == "abc123"


def test_the_shipper_outlives_the_notice(tmp_path: Path) -> None:
    """`ray job stop` signals every process of the tree; the shipper has the last lines still to come."""
    command = tracker._shipper_command(tmp_path, 60, "--parent", str(os.getpid()))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    try:
        while not (tmp_path / "tracking" / "lock").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
