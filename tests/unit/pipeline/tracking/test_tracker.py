"""The spool, what of it counts, the parent's mirror, the shipper's reading of it. No tracker: see test_mlflow.py."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.tracking import links, tracker
from pipeline.tracking.mirror import LIMIT, copy_curves, thin, thin_last
from pipeline.tracking.shipping import Shipping, next_group
from pipeline.tracking.spool import process_identity, spool_ends, surely_dead, whole_lines
from pipeline.tracking.tracker import Spool


def lines(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*.jsonl"))
    return [event for path in files for _, event in whole_lines(path) if event and event["kind"] != "open"]


def steps(folder: Path, key: str) -> list[int]:
    return [event["step"] for event in lines(folder) if key in event.get("values", {})]


def test_importing_the_tracker_imports_neither_mlflow_nor_torch() -> None:
    code = "import sys, pipeline.tracking.tracker, pipeline.tracking.shipper; "
    code += "sys.exit(bool({'mlflow', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_resumed_run_does_not_spool_steps_again(tmp_path: Path) -> None:
    first = Spool(tmp_path, "diffusion/ab", 1)
    for step in range(10):
        first.metrics({"loss": 1.0 / (step + 1), "norm": 2.0}, step)
    second = Spool(tmp_path, "diffusion/ab", 2)  # from the checkpoint at step 6
    for step in range(6, 14):
        second.metrics({"loss": 1.0 / (step + 1)}, step)
    second.metrics({"norm": 2.0, "late": 1.0}, 9)
    assert steps(tmp_path, "loss") == list(range(14))
    assert steps(tmp_path, "norm") == list(range(10))
    assert steps(tmp_path, "late") == [9]


def test_a_torn_last_line_is_ignored_and_its_step_spooled_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "diffusion/ab", 1)
    spool.metrics({"loss": 0.5}, 1)
    spool.metrics({"loss": 0.25}, 2)
    (path,) = tmp_path.glob("*.jsonl")
    os.truncate(path, path.stat().st_size - 5)
    assert steps(tmp_path, "loss") == [1]
    for token in (1, 2):  # the same writer again, and a successor
        again = Spool(tmp_path, "diffusion/ab", token)
        again.metrics({"loss": 0.25}, 2)
        again.metrics({"loss": 0.125}, 3)
    assert steps(tmp_path, "loss") == [1, 2, 3]
    assert [event for _, event in whole_lines(path)].count(None) == 1


def test_lines_of_a_superseded_writer_do_not_count(tmp_path: Path) -> None:
    old = Spool(tmp_path, "diffusion/ab", 1)
    old.metrics({"loss": 1.0}, 1)
    new = Spool(tmp_path, "diffusion/ab", 2)
    old.metrics({"loss": 2.0}, 2)  # a cut-off node goes on
    new.metrics({"loss": 2.0}, 2)
    old.metrics({"loss": 3.0}, 3)
    Spool(tmp_path, "diffusion/ab", 2).metrics({"loss": 3.0}, 3)  # a rank opens it later than its driver
    ends = spool_ends(sorted(tmp_path.glob("*.jsonl")))
    counted = [e for path, end in ends.items() for _, e in whole_lines(path, 0, end) if e and e["kind"] == "metrics"]
    assert [event["step"] for event in counted] == [1, 2, 3]


def test_a_spool_goes_to_another_process_and_keeps_two_runs_apart(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "diffusion/ab", 3)
    spool.metrics({"loss": 1.0}, 1)
    copy = pickle.loads(pickle.dumps(spool))
    copy.metrics({"loss": 1.0}, 1)
    copy.metrics({"loss": 1.0}, 2)
    Spool(tmp_path, "diffusion-ab", 3).metrics({"loss": 1.0}, 1)
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    assert sorted(steps(tmp_path, "loss")) == [1, 1, 2]


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    Spool(tmp_path, "a", 1).metrics({"x": float("inf"), "y": float("nan"), "z": 1.0}, 0)
    assert lines(tmp_path)[0]["values"] == {"x": "inf", "y": "nan", "z": 1.0}


def test_an_image_is_kept_as_it_is_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    spool = Spool(tmp_path, "a", 1)
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    spool.image("samples/ema", image, 5)
    spool.image("samples/ema", image, 5)
    spool.image("gray", image[:, :, :1], 5)
    first, second = lines(tmp_path)
    assert (np.asarray(Image.open(first["path"])) == image).all()
    assert (np.asarray(Image.open(second["path"])) == image[:, :, 0]).all()
    for wrong in (image.astype(np.float32), image.transpose(2, 0, 1), image[:, :, 0]):
        with pytest.raises(ValueError, match="expected uint8"):
            spool.image("wrong", wrong, 1)


def mirror(last: int, every: int, known: bool) -> list[int]:
    events: list[dict[str, Any]] = [{"kind": "start", "steps": last if known else None}]
    events += [{"kind": "metrics", "step": s, "ts_ms": s, "values": {"a": 1.0}} for s in range(0, last + 1, every)]
    return [point.step for point in copy_curves([*events, {"kind": "end"}])[0]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60_000), st.integers(1, 50), st.booleans())
def test_the_mirror_is_short_ordered_and_ends_where_the_curve_ends(last: int, every: int, known: bool) -> None:
    chosen = mirror(last, every, known)
    assert len(chosen) <= 500
    assert chosen == sorted(set(chosen))
    assert (chosen[0], chosen[-1]) == (0, last // every * every)
    if known and last // every < 480:
        assert len(chosen) == last // every + 1  # nothing is left out without need


def test_the_mirror_of_a_known_length_is_even() -> None:
    chosen = mirror(10_000, 1, True)
    assert len(chosen) == 481
    assert max(np.diff(chosen)) <= 22


def test_a_run_that_goes_on_for_ever_stays_under_the_limit() -> None:
    state: dict[str, Any] = {}
    sent = 0
    for part in range(60):
        for step in range(part * 100, part * 100 + 100):
            sent += len(thin(state, {"kind": "metrics", "step": step, "ts_ms": 0, "values": {"a": 1.0}}, 500))
        sent += len(thin_last(state))
    assert sent == LIMIT["metrics"]


def test_groups_hold_a_thousand_values_or_one_other_line(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "a", 1)
    spool.start("1 ingest")
    for step in range(700):
        spool.metrics({"x": 1.0, "y": 2.0}, step)
    spool.end()
    (path,) = tmp_path.glob("*.jsonl")
    at, groups = 0, []
    while at < path.stat().st_size:
        group, at = next_group(path, at, path.stat().st_size)
        groups.append((group[0]["kind"], len(group)))
    assert groups == [("open", 1), ("start", 1), ("metrics", 500), ("metrics", 200), ("end", 1)]


def test_links_in_notes_become_known(tmp_path: Path) -> None:
    shipping = Shipping(tmp_path, "http://127.0.0.1:1")
    shipping.state["runs"] = {"p": {"id": "R1", "experiment": "7"}}
    text = "[a]({{run:diffusion/ab}}) [p]({{run:p}}) [m]({{model:register/cd}})"
    assert shipping.render(text, "p").split(" [")[0] == "[a](#/experiments/7)"
    shipping.state["runs"]["diffusion/ab"] = {"id": "R2", "experiment": "7"}
    shipping.state["models"]["register/cd"] = "#/models/digits/versions/3"
    links = [f"#/experiments/7/runs/{run}?workflowType=machine_learning" for run in ("R2", "R1")]
    assert shipping.render(text, "p") == f"[a]({links[0]}) [p]({links[1]}) [m](#/models/digits/versions/3)"


def test_left_counts_lines_behind_the_offset(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "pipelines" / "p" / "spool", "p", 1)
    spool.start("digits")
    uri = links.resolve_uri(tmp_path)
    assert tracker.left(tmp_path, uri) == 2  # open and start
    (path,) = (tmp_path / "pipelines" / "p" / "spool").glob("*.jsonl")
    store = {"offsets": {str(path.relative_to(tmp_path)): path.stat().st_size}, "trouble": "no route"}
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "state.json").write_text(json.dumps({"stores": {uri: store}}))
    assert tracker.left(tmp_path, uri) == 0
    spool.end()
    assert tracker.left(tmp_path, uri) == 1
    message = tracker.left_message(tmp_path, uri, 1)
    assert "ldm mlflow sync" in message and "no route" in message and "\n" not in message


def test_the_tracking_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert links.resolve_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:secret@host:5000/")
    assert links.resolve_uri(tmp_path) == "https://ann:secret@host:5000"
    assert links.public_uri(links.resolve_uri(tmp_path)) == "https://host:5000"
    assert links.resolve_uri(tmp_path, "http://other:1") == "http://other:1"
    for wrong in ("./mlruns", "file:///tmp/mlruns"):
        with pytest.raises(UserError, match=r"tracking\.uri"):
            links.resolve_uri(tmp_path, wrong)


def test_only_a_process_that_is_gone_for_certain_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(child.pid)
    assert not surely_dead(identity)
    assert surely_dead(identity | {"started": identity["started"] - 1})  # the number was given to another process
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert surely_dead(identity)
    for key in ("host", "boot", "pids"):  # another machine of that name, another container: who knows
        assert not surely_dead(identity | {key: "another"})
    del identity["pids"]  # written before it was kept
    assert not surely_dead(identity)
