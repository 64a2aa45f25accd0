"""What a verb has made is recorded once, whole, under the run that trained its model; nothing of it is waited for."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.applications import made_images, recorded
from pipeline.files import write_json
from pipeline.past import history
from pipeline.tracking import links, tracker

DIFFUSION = {"fingerprint": "ab" * 8, "content": "cd" * 32}
REGISTER = f"register/{'ef' * 8}/01234567"
MODEL = {"name": "faces", "weights": {"denoiser.safetensors": "12" * 32}, "lineage": {"diffusion": DIFFUSION}}
ASKED = {"model": MODEL, "how": {"set": {"age": "70"}, "steps": 5}, "given": [{"file": "a.png", "sha256": "34" * 32}]}

CONFIG = """\
run: {name: faces}
data: {source: {kind: folder, path: /none}, size: 8}
autoencoder: {model: {kind: kl}, training: {steps: 1}}
diffusion: {backbone: {kind: dit}, training: {steps: 1}}
tracking: {experiment: portraits, deadline: 7}
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the shipper was started for."""
    found: list[Any] = []
    monkeypatch.setattr(tracker, "start", lambda *given: found.append(given))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with the trace of one run, and what an edit has left in `tmp_path/out`."""
    folder = tmp_path / "root" / "pipelines" / ("0" * 16)
    spool = tracker.Spool(folder / "spool", f"pipeline/{folder.name}", 1)
    spool.start("faces", experiment="portraits")
    spool.note(f"[diffusion]({{{{run:diffusion/{DIFFUSION['fingerprint']}/89abcdef}}}}), {{{{run:{REGISTER}}}}}")
    spool.end()
    (folder / "config.yaml").write_text(CONFIG)
    write_json(tmp_path / "out" / made_images.ASKED, ASKED)
    (tmp_path / "out" / made_images.GRID).write_bytes(b"a picture")
    return tmp_path / "root"


def edited(root: Path) -> None:
    recorded.record(root, "edit", root.parent / "out", "1 image", [made_images.GRID], {"images": 1})


def records(root: Path) -> list[Path]:
    return sorted(root.glob("pipelines/edit-*"))


def lines(folder: Path) -> list[dict[str, Any]]:
    (spool,) = folder.glob("spool/*.jsonl")
    return [json.loads(line) for line in spool.read_text().splitlines()]


def test_it_is_a_run_below_that_of_its_model(
    root: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    edited(root)
    (folder,) = records(root)
    said = {line["kind"]: line for line in lines(folder)}
    assert list(said) == ["open", "start", "metrics", "note", "uses", "file", "end"]
    assert said["uses"]["of"] == REGISTER
    start = said["start"]
    assert (start["name"], start["group"], start["experiment"]) == ("edit out", f"pipeline/{'0' * 16}", "portraits")
    assert start["params"] == {"set.age": "70", "steps": "5", "images": "1"}
    assert start["tags"] == {
        "ldm.verb": "edit",
        "ldm.diffusion": f"{'ab' * 8} {'cd' * 6}",
        "ldm.weights.denoiser.safetensors": "12" * 32,
    }
    assert said["metrics"]["values"] == {"edit/images": 1.0}
    assert said["note"]["markdown"] == f"1 image\n\nModel: [faces]({{{{model:{REGISTER}}}}})"
    kept = [Path(line["path"]) for line in lines(folder) if line["kind"] == "file"]
    assert [path.name for path in kept] == ["asked.json", "grid.png"] and kept[1].read_bytes() == b"a picture"
    assert json.loads(kept[0].read_text()) == ASKED
    assert started == [(root, links.resolve_uri(root), 7.0)] and not capsys.readouterr().out
    assert [past.name for past in history.pipelines(root)] == ["faces"]  # a record is no pipeline
    assert not list((root / "tracking").glob("*.tmp"))


def test_the_same_call_again_is_one_record(root: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    edited(root)
    before = lines(records(root)[0])
    edited(root)  # nobody has sent it: the first may have been killed before
    assert len(started) == 2 and lines(records(root)[0]) == before
    monkeypatch.setattr(tracker, "left", lambda *_: 0)
    edited(root)
    assert len(started) == 2 and lines(records(root)[0]) == before
    write_json(root.parent / "out" / made_images.ASKED, {**ASKED, "how": {"steps": 6}})
    edited(root)
    assert len(started) == 3 and len(records(root)) == 2


@pytest.mark.parametrize("lineage", [{}, 3, {"diffusion": []}, {"diffusion": {**DIFFUSION, "fingerprint": "99" * 8}}])
def test_a_model_of_no_run_here_is_not_recorded(root: Path, started: list[Any], lineage: Any) -> None:
    asked = {**ASKED, "model": {**MODEL, "lineage": lineage}}
    recorded.record(root, "edit", root.parent / "out", "", asked=asked)
    recorded.record(root, "probe", root.parent / "out", "", asked={**ASKED, "model": lineage})
    recorded.record(root.parent / "none", "edit", root.parent / "out", "")
    assert not records(root) and not started and not (root.parent / "none").exists()


@pytest.mark.parametrize("port", ["9", "port"])  # none listens; no port at all
def test_a_tracker_that_is_away_costs_a_line(
    root: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:secret@127.0.0.1:{port}")
    edited(root)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "`ldm mlflow sync` sends it" in said and "secret" not in said
    assert said.startswith(f"tracker http://127.0.0.1:{port}: cannot be reached (") and not started
    assert lines(records(root)[0])[-1]["kind"] == "end"


def test_what_is_no_web_server_is_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(1 << 16)
            connection.sendall(b"SSH-2.0-x\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        assert "SSH-2.0-x" in str(recorded.unreachable(f"http://127.0.0.1:{server.getsockname()[1]}"))
        thread.join()


def test_what_cannot_be_kept_is_said_and_left_out(
    root: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (root.parent / "out" / made_images.GRID).unlink()
    edited(root)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith("this edit is not recorded: ") and "grid.png" in said
    assert not records(root) and not started and not list((root / "tracking").iterdir())
    (next(root.glob("pipelines/*")) / "config.yaml").write_text("run: [")
    edited(root)
    assert capsys.readouterr().out.startswith("this edit is not recorded: ")
