"""Which errors drop a line for ever and which keep it. What MLflow does with what it takes: see test_mlflow.py."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.tracking.mirror import Point
from pipeline.tracking.mlflow_calls import Down, Refused, reaching
from pipeline.tracking.mlflow_store import NOTE, MlflowStore, unedited


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/mnt/a"), Down, "/mnt/a: No space left"),
        (TimeoutError("timed out"), Down, "timed out"),
        (OSError(errno.ESTALE, "Stale file handle"), Down, "Stale file handle"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/tmp/x"), Down, "/tmp/x"),  # not what is sent
        (TypeError("a list"), Refused, "a list"),
        (ValueError("a word"), Refused, "a word"),
    ],
)
def test_only_what_is_wrong_for_ever_is_refused(error: Exception, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text), reaching():
        raise error


def store(log: object) -> MlflowStore:
    """A store whose client does `log` for every call."""
    made = object.__new__(MlflowStore)
    made.client = SimpleNamespace(log_artifact=log, log_artifacts=log, set_tag=log)
    return made


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_is_gone_is_refused_and_a_full_disk_keeps_it(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.txt", tmp_path / "gone" / "folder"):
        with pytest.raises(Refused, match="no such file"):
            store(full).file("run", path, "data")
    (tmp_path / "here.txt").write_text("x")
    with pytest.raises(Down, match="No space left"):
        store(full).file("run", tmp_path / "here.txt", "data")


def test_a_damaged_picture_is_refused_and_a_full_disk_keeps_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    point = Point("image", "samples", 1, str(path), 0)
    with pytest.raises(Refused, match="no such file"):
        store(full).points("run", [point])
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    for damaged in (b"text", whole[:500]):
        path.write_bytes(damaged)
        with pytest.raises(Refused, match="no whole picture"):
            store(full).points("run", [point])
    path.write_bytes(whole)
    with pytest.raises(Down, match="No space left"):
        store(full).points("run", [point])


def test_a_text_that_a_person_edited_is_never_overwritten() -> None:
    tags = unedited({}, {NOTE: "one", "view": "{}"})
    assert tags[NOTE] == "one" and tags["view"] == "{}"
    assert unedited(tags, {NOTE: "one", "view": "{}"}) == {}  # nothing to do
    newer = unedited(tags, {NOTE: "two", "view": "{}"})
    assert newer[NOTE] == "two" and "view" not in newer  # ours, and out of date
    tags |= newer
    for theirs in ("my own words", "two, and more", ""):
        kept = tags | {NOTE: theirs}
        assert unedited(kept, {NOTE: "three", "view": "[]"})["view"] == "[]"
        assert NOTE not in unedited(kept, {NOTE: "three", "view": "[]"})
    assert unedited({NOTE: "before records were kept"}, {NOTE: "three"}).get(NOTE) is None
    assert unedited(tags | {"ldm.written": "no record"}, {NOTE: "three"}).get(NOTE) is None
