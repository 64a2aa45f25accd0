"""Run keys and the parent run: an attempt has its own MLflow run, and one process at a time drives a pipeline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Artifact, Store
from pipeline.config import Config, load
from pipeline.errors import UserError
from pipeline.stages.register import description
from pipeline.tracking import tracker
from pipeline.tracking.runs import PipelineRun, flatten, run_key
from pipeline.tracking.spool import spool_ends, spool_files, whole_lines


class NoShipper:
    """The spool stays where it is."""

    uri = ""

    def drain(self) -> int:
        return 0


def config(root: Path) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "digits", "root": str(root)},
            "data": {"source": {"kind": "digits"}},
            "autoencoder": {"model": {"kind": "kl"}, "training": {"steps": 1}},
            "diffusion": {"backbone": {"kind": "dit"}, "training": {"steps": 1}},
        }
    )


def make(store: Store, parent: PipelineRun, stop: bool = False) -> tuple[str, Artifact | None]:
    """A stage that runs to its end or is stopped: its run key, the artifact."""
    with store.write("ingest", "ab12", {"size": 8}, {}) as writer, parent.stage("ingest", writer, None) as spool:
        spool.metrics({"ingest/images": 1.0}, writer.token)
        return spool.run, None if stop else writer.finish({"figure": "1 image"})


@pytest.fixture(autouse=True)
def no_shipper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "start", lambda *_: NoShipper())


def test_a_stage_goes_on_in_its_run_and_is_another_run_when_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with PipelineRun(config(tmp_path), tmp_path, "cd34", False) as parent:
        stopped, _ = make(store, parent, stop=True)
        first, artifact = make(store, parent)
        assert artifact is not None and stopped == first == run_key(artifact)
        assert first.startswith("ingest/ab12/") and len(first) == len("ingest/ab12/") + 8
        parent.cached("ingest", artifact, "1 image")
        store.set_aside(artifact)
        assert not spool_files(tmp_path)[1]  # what was set aside is shipped no more
        second, again = make(store, parent)
        assert again is not None and second == run_key(again) != first
        assert again.content == artifact.content  # the attempt is no part of it
    lines: list[dict[str, Any]] = [e for path in spool_files(tmp_path)[0] for _, e in whole_lines(path) if e]
    (adopted,) = [event["of"] for event in lines if event["kind"] == "adopt"]
    (note,) = [event["markdown"] for event in lines if event["kind"] == "note"]
    assert adopted == first and f"{{{{run:{first}}}}}" in note


def test_an_artifact_without_its_work_has_the_key_of_no_run(tmp_path: Path) -> None:
    with Store(tmp_path).write("ingest", "ab12", {}, {}) as writer:
        artifact = writer.finish({})
    assert run_key(artifact) == "ingest/ab12"


def test_the_models_description_links_the_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    from pipeline.stages import evaluate, ingest

    with PipelineRun(config(tmp_path), tmp_path, "cd34", False) as parent:
        key, artifact = make(Store(tmp_path), parent)
    assert artifact is not None
    for stage in (ingest, evaluate):
        monkeypatch.setattr(stage, "headline", lambda summary: summary["figure"])
    text = description({"ingest": artifact, "evaluate": artifact}, "register/ef56")
    assert text.startswith("1 image\n")
    assert f"| [data]({{{{run:{key}}}}}) |" in text and "| [config]({{config:register/ef56}}) |" in text


def test_the_run_begins_with_its_figure_and_keeps_its_config_without_a_password(tmp_path: Path) -> None:
    with_password = config(tmp_path).model_dump(by_alias=True) | {"tracking": {"uri": "http://me:secret@host:1"}}
    given = Config.model_validate(with_password)
    with PipelineRun(given, tmp_path, "cd34", False) as parent:
        _, artifact = make(Store(tmp_path), parent)
        assert artifact is not None
        parent.cached("evaluate", artifact, "distance 3")
        parent.cached("register", artifact, "models:/digits@latest-good")
    lines: list[dict[str, Any]] = [e for path in spool_files(tmp_path)[0] for _, e in whole_lines(path) if e]
    note = [event["markdown"] for event in lines if event["kind"] == "note"][-1]
    assert (
        note.startswith("distance 3\n") and f"[models:/digits@latest-good]({{{{model:{run_key(artifact)}}}}})" in note
    )
    (file,) = [Path(event["path"]) for event in lines if event["kind"] == "file"]
    assert file.name == "config.yaml" and "secret" not in file.read_text()
    again = load(file)
    assert again.model_copy(update={"tracking": given.tracking}) == given and again.tracking.uri == "http://host:1"


DRIVE = """
import sys
from pathlib import Path
from pipeline.tracking import tracker
from pipeline.config import Config
from pipeline.tracking.runs import PipelineRun
tracker.start = lambda *_: None
with PipelineRun(Config.model_validate_json(sys.argv[2]), Path(sys.argv[1]), "cd34", False) as run:
    print("here", flush=True)
    sys.stdin.read(1)
    run.spool.metrics({"late": 1.0}, 5)
    print("said", flush=True)
    sys.stdin.read()
"""


def test_a_second_driver_is_refused_and_the_first_ones_lines_still_count(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DRIVE, str(tmp_path), config(tmp_path).model_dump_json(by_alias=True)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdin is not None and first.stdout is not None and first.stdout.readline() == "here\n"
    try:
        second = PipelineRun(config(tmp_path), tmp_path, "cd34", False)
        with pytest.raises(UserError, match=rf"cd34: being written by process {first.pid} on "), second:
            pass
        first.stdin.write("x")
        first.stdin.flush()
        assert first.stdout.readline() == "said\n"
        (only,) = spool_files(tmp_path)[0]
        counted = [event for _, event in whole_lines(only, 0, spool_ends([only])[only])]
        assert counted[-1] is not None and counted[-1]["values"] == {"late": 1.0}
    finally:
        first.kill()
        first.wait()
    with PipelineRun(config(tmp_path), tmp_path, "cd34", False) as after:  # the holder is dead
        assert after.spool.token == 2
    with PipelineRun(config(tmp_path), tmp_path, "cd34", False) as after:  # and has ended
        assert after.spool.token == 3


def test_params_by_class_names_are_one_value():
    """A class may have any name; MLflow refuses most characters in a param's key."""
    values = {"data": {"balance": {"power": 1.0, "weights": {"cats & dogs (2)": 2.0}}, "size": 8}}
    assert flatten(values) == {
        "data.balance.power": "1.0",
        "data.balance.weights": "{'cats & dogs (2)': 2.0}",
        "data.size": "8",
    }
