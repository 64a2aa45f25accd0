"""`ldm sample`: what it refuses before any work, and whose batch size it takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.sample import command
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


def test_the_batch_size_is_the_models_where_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    counts: list[Any] = []

    def load(*_: object, **__: object) -> Any:
        def request(*values: Any, **_: object) -> dict[str, Any]:
            asked.append(values[-1])
            counts.append(values[1])
            return {}

        return SimpleNamespace(request=request, images=lambda *_: [], shapes=[(8, 8)], classes=[])

    monkeypatch.setattr(folder, "load_pretrained", load)
    monkeypatch.setattr(samples, "sample_info", lambda *_: {})
    monkeypatch.setattr(samples, "write_samples", lambda *_: None)
    sample("model", "--out", str(tmp_path / "new"))
    sample("model", "--out", str(tmp_path / "new"), "--batch-size", "7", "--classes", "a")
    sample("model", "--out", str(tmp_path / "new"), "--prompt", "one")
    assert asked == [None, 7, None] and counts == [16, 16, None]


def test_blanks_around_the_names_of_classes_are_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*_: object, **__: object) -> Any:
        return SimpleNamespace(
            request=lambda classes, *_, **__: asked.append(classes) or {},
            images=lambda *_: [],
            shapes=[(8, 8)],
            classes=["c0", "c1", " odd"],
        )

    monkeypatch.setattr(folder, "load_pretrained", load)
    monkeypatch.setattr(samples, "sample_info", lambda *_: {})
    monkeypatch.setattr(samples, "write_samples", lambda *_: None)
    sample("model", "--out", str(tmp_path / "new"), "--classes", "c0, c1 , odd")
    sample("model", "--out", str(tmp_path / "new"))
    assert asked == [["c0", "c1", " odd"], None]
