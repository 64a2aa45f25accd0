"""What the sampling page says of a request: a command and Python lines that make the same request again."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.sample import command
from pipeline.generate import folder, samples
from pipeline.generate.generator import Generator
from pipeline.pages.sampling_page import command_line, models_in, python_lines, told

NAMES = ["cat", "3", "a, b"]


def model() -> Generator:
    """What checks requests: no networks."""
    options = {"classes": NAMES, "condition": {"kind": "class", "drop": 0.1}}
    return Generator(options, None, None, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [None, ["cat"], ["3", "cat", "cat"], ["a, b", "3"]])
def test_the_command_makes_the_same_request(
    classes: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = model().request(classes, 7, 5, 12, "euler", 2.5, 4, grid="karras", guidance_interval=(0.2, 5.0))
    words = shlex.split(command_line("some model", told(model(), request), NAMES, tmp_path))
    assert words[:2] == ["ldm", "sample"]
    asked: list[Any] = []

    def load(source: str, root: Path, weights: None) -> Any:
        def ask(*values: Any, **how: Any) -> dict[str, Any]:
            asked.append(model().request(*values, **how))
            return asked[-1]

        return SimpleNamespace(request=ask, images=lambda *_: [], classes=NAMES, shapes=[(8, 8)])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder, "load_pretrained", load)
    monkeypatch.setattr(samples, "sample_info", lambda *_: {})
    monkeypatch.setattr(samples, "write_samples", lambda *_: None)
    command.main(words[2:], standalone_mode=False)
    assert asked == [request]


@pytest.mark.parametrize("classes", [None, ["3", "cat", "cat"], ["a, b", "3"]])
def test_the_python_lines_make_the_same_request(
    classes: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = model().request(classes, 7, 5, 12, "euler", 2.5, 4, grid="karras", guidance_interval=(0.2, 5.0))
    loaded: list[Any] = []

    def load(*source: Any, **options: Any) -> Any:
        loaded.append((*source, options))
        return SimpleNamespace(sample=lambda **values: model().request(**values))

    monkeypatch.setattr(folder, "load_pretrained", load)
    names: dict[str, Any] = {}
    exec(python_lines("models:/cats@best", told(model(), request), NAMES, tmp_path), names)
    assert names["images"] == request and loaded == [("models:/cats@best", {"root": str(tmp_path)})]


def test_a_registered_model_is_told_where_its_data_base_is(tmp_path: Path) -> None:
    request = told(model(), model().request())
    assert f"--root {tmp_path}" in command_line("models:/cats@best", request, NAMES, tmp_path)
    assert "--root" not in command_line("folder", request, NAMES, tmp_path)


def test_a_root_without_models_offers_none(tmp_path: Path) -> None:
    assert models_in(tmp_path) == {}
