"""Checkpoints: damage is named and the newest whole one taken, an old lease gives way, a full disk is one line."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import nn

from pipeline.artifacts import lease_file
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.schema.training import Training
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Saver, listing, restore
from pipeline.training.engine import Engine
from pipeline.training.ranks import open_ranks

FILE = "rank-00000-of-00001.safetensors"


def make(width: int = 6, stage: int = 0, half_lives: tuple[int, ...] = (8,)) -> Engine:
    training = Training(batch_size=4, steps=100, zero_stage=stage, learning_rate=1e-2, half_lives=half_lives)
    model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 3))
    return Engine(
        model, lambda module, batch: {"loss": (module(batch["x"]) - 1).square().mean()}, training, open_ranks()
    )


def step(engine: Engine, position: int) -> float:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(position))
    return engine.step({"x": x}, position).loss


class Run(NamedTuple):
    folder: Path
    losses: list[float]

    def path(self, position: int) -> Path:
        (saved,) = [entry for entry in listing(self.folder) if entry.position == position]
        return self.folder / saved.name


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Checkpoints at positions 4, 8, ..., 20, and the losses of the ten steps from 0 on."""
    engine = make()
    saver = Saver(tmp_path, 9, 1, engine)
    losses = []
    for position in range(0, 40, 4):
        losses.append(step(engine, position))
        if position < 20:
            saver.save(position + 4, {"guard": position})
    saver.wait()
    saver.close()
    return Run(tmp_path, losses)


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def no_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def cut_manifest(path: Path) -> None:
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text[: len(text) // 2])


DAMAGES = {
    "wrong digest": lambda path: flip(path / FILE, (path / FILE).stat().st_size - 100),
    "bytes instead of": lambda path: os.truncate(path / FILE, 500),
    f"{FILE}: missing": lambda path: (path / FILE).unlink(),
    "manifest.json: missing": no_manifest,
    "manifest.json: unreadable": cut_manifest,
    "manifest.json: wrong digest": lambda path: flip(path / "manifest.json", 400),
}


@pytest.mark.parametrize("told", DAMAGES)
def test_damage_is_named_and_the_newest_whole_one_taken(run: Run, told: str) -> None:
    DAMAGES[told](run.path(20))
    DAMAGES[told](run.path(16))
    said: list[str] = []
    engine = make()
    extra = restore(run.folder, engine, say=said.append)
    assert extra == {"guard": 8, "position": 12}
    assert len(said) == 2 and all(told in line for line in said) and run.path(20).name in said[0]
    assert [step(engine, position) for position in range(12, 40, 4)] == run.losses[3:]


@pytest.mark.parametrize("told", DAMAGES)
def test_nothing_but_damage_is_an_error(run: Run, told: str) -> None:
    for position in range(4, 21, 4):
        DAMAGES[told](run.path(position))
    if told == "manifest.json: missing":  # a kill in the first save looks like this: nothing was finished
        assert restore(run.folder, make(), say=lambda line: None) is None
    else:
        with pytest.raises(UserError, match=r"every checkpoint is damaged \(5 of them"):
            restore(run.folder, make(), say=lambda line: None)


def test_before_takes_an_older_one(run: Run) -> None:
    engine = make()
    assert restore(run.folder, engine, before=9) == {"guard": 4, "position": 8}
    assert [step(engine, position) for position in range(8, 40, 4)] == run.losses[2:]


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_another_stage_holds_the_same(run: Run, stage: int) -> None:
    first, second = make(), make(stage=stage)
    restore(run.folder, first)
    restore(run.folder, second)
    for which in ("live", "ema"):
        one, other = first.export(which), second.export(which)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    for position in range(20, 40, 4):
        assert step(second, position) == pytest.approx(run.losses[position // 4], rel=1e-5)
    second.close()


def test_the_file_is_plain_safetensors(run: Run) -> None:
    with safe_open(run.path(20) / FILE, "pt") as file:
        names = set(file.keys())
        assert {"master", "exp_avg", "exp_avg_sq", "average-8", "buffer/1.running_mean"} <= names
        assert file.get_tensor("master").shape == (6 * 3 + 6 + 6 + 6 + 3 * 6 + 3,)


def test_nothing_there(tmp_path: Path) -> None:
    assert restore(tmp_path / "nothing", make()) is None


def test_another_model_is_one_line(run: Run) -> None:
    with pytest.raises(UserError, match=r"of another model: 0\.bias is \[6\] there, \[7\] in the model"):
        restore(run.folder, make(width=7))
    with pytest.raises(UserError, match=r"holds no average-9: give training\.half_lives"):
        restore(run.folder, make(half_lives=(9,)))


def test_files_of_a_superseded_lease_are_ignored(run: Run) -> None:
    engine = make()
    restore(run.folder, engine, before=8)
    ours, theirs = Saver(run.folder, 9, 2, engine), Saver(run.folder, 9, 1, engine)
    ours.save(12, {"owner": "second"})
    ours.wait()
    theirs.save(24, {"owner": "first"})  # a job that does not know yet that it lost its lease
    with pytest.raises(UserError, match=r"taken over this run .lease token 2, ours is 1."):
        theirs.wait()
    extra = restore(run.folder, make())
    assert extra == {"owner": "second", "position": 12}
    (run.folder.parent / "lease").mkdir()
    write_json(lease_file(run.folder.parent / "lease", 3), {})  # a third one, which has written nothing yet
    ours.save(16, {"owner": "second"})
    with pytest.raises(UserError, match=r"taken over this run .lease token 3, ours is 2."):
        ours.wait()
    shutil.rmtree(run.folder.parent / "lease")  # other tests copy the folder
    assert restore(run.folder, make()) == extra


def test_keeps_the_newest_and_no_leftovers(run: Run) -> None:
    shutil.rmtree(run.path(12))
    no_manifest(run.path(8))
    engine = make()
    saver = Saver(run.folder, 2, 2, engine)
    for position in (24, 28):
        saver.save(position, {})
    saver.wait()
    assert [entry.position for entry in listing(run.folder)] == [28, 24]


def test_one_from_before_the_bad_steps_stays(run: Run) -> None:
    saver = Saver(run.folder, 1, 2, make())
    saver.save(24, {}, good_until=15)
    saver.wait()
    assert [entry.position for entry in listing(run.folder)] == [24, 12]


def test_training_stands_still_for_the_copy_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, go = make(), threading.Event()
    write = checkpoint.write_safetensors

    def slow(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        assert threading.current_thread() is not threading.main_thread()
        assert go.wait(30)
        return write(path, tensors)

    monkeypatch.setattr(checkpoint, "write_safetensors", slow)
    step(engine, 0)
    before = engine.export("live")
    saver = Saver(tmp_path, 2, 1, engine)
    saver.save(4, {})  # returns although nothing is written yet
    step(engine, 4)  # what is written must be what was there
    go.set()
    saver.wait()
    again = make()
    restore(tmp_path, again)
    assert all(torch.equal(before[name], value) for name, value in again.export("live").items())


@pytest.mark.parametrize("how", ("no room before", "no room half-way", "read-only"))
def test_a_full_disk_is_one_clear_line(run: Run, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    restore(run.folder, engine)
    saver = Saver(run.folder, 1, 1, engine)
    if how == "no room before":
        usage = shutil.disk_usage(run.folder)._replace(free=10)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    else:
        code = errno.ENOSPC if how == "no room half-way" else errno.EROFS

        def full(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(checkpoint, "write_safetensors", full)
    saver.save(24, {})
    with pytest.raises(
        UserError, match=r"step-000000000024.*needs [\d,]+ bytes, [\d,]+ bytes free.*untouched"
    ) as caught:
        saver.wait()
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert restore(run.folder, make(), say=lambda line: None) == {"guard": 16, "position": 20}


def test_extra_must_be_plain(tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError)):
        Saver(tmp_path, 1, 1, make()).save(4, {"loss": float("nan")})
