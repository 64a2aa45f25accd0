"""Whether a training is compiled: by its length, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.schema.training import Training
from pipeline.training import compiling
from pipeline.training.ranks import open_ranks

RATE = 1e9


@pytest.fixture(autouse=True)
def a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "product_rate", lambda ranks, precision: RATE)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}")


def settled(folder: Path, steps: int, say: list[str], flops: int = int(RATE)) -> object:
    training = Training(batch_size=1, steps=steps, precision="fp32", compile="auto")
    return compiling.settled(training, open_ranks("cpu"), folder, flops, say.append).compile


def test_long_trainings_are_compiled_and_what_was_decided_stays(tmp_path: Path) -> None:
    enough, said = int(compiling.TAKES / compiling.SAVES), list[str]()  # steps of a second each
    (tmp_path / "long").mkdir()
    (tmp_path / "short").mkdir()
    assert settled(tmp_path / "long", enough + 1, said) is True
    assert settled(tmp_path / "short", enough - 1, said) is False
    assert said[0] == f"`training.compile`: auto is true: {enough + 1} s of large products"
    assert settled(tmp_path / "long", 1, said) is True and settled(tmp_path / "short", 10**9, said) is False
    assert len(said) == 2


def test_unknown_costs_and_no_compiler_are_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    (tmp_path / "unknown").mkdir()
    assert settled(tmp_path / "unknown", 10**9, said, flops=0) is False
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert settled(tmp_path, 10**9, said) is False and said[1].endswith("false: no C++ compiler here")


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_said_is_taken(tmp_path: Path, asked: bool) -> None:
    training = Training(batch_size=1, steps=1, compile=asked)
    assert compiling.settled(training, open_ranks("cpu"), tmp_path, 1, print) is training
    assert not list(tmp_path.iterdir())
