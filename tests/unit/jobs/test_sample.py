"""`ldm sample`: what it refuses before any work, and whose batch size it takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.sample import command, maps_of
from pipeline.errors import UserError
from pipeline.generate import folder, samples


def sample(*arguments: str) -> None:
    command.main([*arguments], standalone_mode=False)


def test_a_folder_that_is_in_use_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "load_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "a.png").write_text("there")
    for out in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(UserError, match="not an empty folder"):
            sample("model", "--out", str(out))


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = SimpleNamespace(
        request=lambda *_, **__: {}, images=lambda *_: pytest.fail("images were made"), classes=[], tokenizer=None,
        clip=None, sound=None, shapes=[(8, 8)],
    )  # fmt: skip
    monkeypatch.setattr(folder, "load_pretrained", lambda *_, **__: made)
    (tmp_path / "file").write_text("there")
    for out in (tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(UserError, match=r"out: cannot be made \(.*\); give another path"):
            sample("model", "--out", str(out))


def test_the_batch_size_is_the_models_where_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    counts: list[Any] = []

    def load(*_: object, **__: object) -> Any:
        def request(*values: Any, **_: object) -> dict[str, Any]:
            asked.append(values[-1])
            counts.append(values[1])
            return {}

        return SimpleNamespace(
            request=request,
            images=lambda *_: [],
            shapes=[(8, 8)],
            classes=[],
            values=None,
            tokenizer=None,
            clip=None,
            sound=None,
        )

    monkeypatch.setattr(folder, "load_pretrained", load)
    monkeypatch.setattr(samples, "sample_info", lambda *_: {})
    monkeypatch.setattr(samples, "write_samples", lambda *_: None)
    sample("model", "--out", str(tmp_path / "new"))
    sample("model", "--out", str(tmp_path / "new"), "--batch-size", "7", "--classes", "a")
    sample("model", "--out", str(tmp_path / "new"), "--prompt", "one")
    assert asked == [None, 7, None] and counts == [16, 16, None]


def test_pictures_are_taken_in_turn_and_a_folder_is_its_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    a, b = tmp_path / "a.PNG", tmp_path / "b.png"
    assert maps_of([f"mask={tmp_path}", f"mask={a}", f"edge={b}"]) == {"mask": [a, b, a], "edge": [b]}
    (tmp_path / "empty").mkdir()
    for given, message in (
        ("mask", "expected NAME=FILE"),
        ("mask=", "expected NAME=FILE"),
        (f"mask={tmp_path / 'no.png'}", "no picture is there"),
        (f"mask={tmp_path / 'empty'}", "no picture is there"),
    ):
        with pytest.raises(UserError, match=f"--map .*{message}"):
            maps_of([given])


def test_blanks_around_the_names_of_classes_are_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*_: object, **__: object) -> Any:
        return SimpleNamespace(
            values=None,
            request=lambda classes, *_, **__: asked.append(classes) or {},
            images=lambda *_: [],
            shapes=[(8, 8)],
            classes=["c0", "c1", " odd"],
            tokenizer=None,
            clip=None,
            sound=None,
        )

    monkeypatch.setattr(folder, "load_pretrained", load)
    monkeypatch.setattr(samples, "sample_info", lambda *_: {})
    monkeypatch.setattr(samples, "write_samples", lambda *_: None)
    sample("model", "--out", str(tmp_path / "new"), "--classes", "c0, c1 , odd")
    sample("model", "--out", str(tmp_path / "new"))
    assert asked == [["c0", "c1", " odd"], None]
