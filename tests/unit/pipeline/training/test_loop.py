"""The loop in one process: what is logged when, stopping and going on, errors of a checkpoint."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.schema.training import Training
from pipeline.training.checkpoint import listing
from pipeline.training.engine import Engine, StepStats
from pipeline.training.loop import Progress, Summary, Task, train
from pipeline.training.ranks import open_ranks


def batches(position: int) -> Iterator[dict[str, Any]]:
    for at in itertools.count(position, 4):
        yield {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(at)), "position": at}


def loss(module: nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {"loss": (module(batch["x"]) - batch["x"]).square().mean()}


def spoilt(*bad: int) -> Task:
    """A task whose loss is NaN at these positions."""

    def nan(position: int) -> Iterator[dict[str, Any]]:
        for batch in batches(position):
            yield batch | {"x": batch["x"] * float("nan")} if batch["position"] in bad else batch

    return Task("test", loss, nan)


class Record:
    """A log, and the losses by position."""

    def __init__(self) -> None:
        self.points: dict[int, dict[str, float]] = {}
        self.images: list[tuple[str, int]] = []
        self.losses: dict[int, float] = {}
        self.steps = 0
        self.progress: list[Progress] = []
        self.lines: list[str] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.points.setdefault(step, {}).update(values)

    def image(self, key: str, image: np.ndarray, step: int, cells: Any = ()) -> None:
        self.images.append((key, step))

    def step(self, position: int, stats: StepStats) -> None:
        self.steps += 1
        if not stats.skipped:
            self.losses[position] = stats.loss

    def show(self, progress: Progress) -> None:
        self.progress.append(progress)
        self.lines.append(str(progress))


def run(
    folder: Path, steps: int = 12, stop_after: int | None = None, task: Task | None = None, **more: Any
) -> tuple[Summary, Record]:
    keys = ("skip", "max_bad_steps", "schedule", "decay", "keep", "learning_rate")
    settings = {"learning_rate": 1e-2} | {key: more.pop(key) for key in keys if key in more}
    training = Training(batch_size=4, steps=steps, half_lives=(8,), zero_stage=0, log_every=3, validate_every=6,
                        preview_every=5, save_every=4, **settings)  # fmt: skip
    ranks = open_ranks()
    torch.manual_seed(0)
    engine = Engine(nn.Linear(3, 3), loss, training, ranks)
    record = Record()
    task = task or Task(
        "test", loss, batches,
        validate=lambda engine: {"val_loss": 1.5, "val_odd": float("nan")},
        preview=lambda engine: {"samples/ema": np.zeros((2, 2, 3), np.uint8)},
    )  # fmt: skip
    summary = train(
        engine, task, training, ranks, folder, record,
        lambda: stop_after is not None and record.steps >= stop_after,
        on_step=record.step, say=record.lines.append, progress=record.show, **more,
    )  # fmt: skip
    return summary, record


def test_what_is_logged_and_when(tmp_path: Path) -> None:
    summary, record = run(tmp_path)
    assert (summary.finished, summary.step, summary.position, summary.resumed_from) == (True, 12, 48, None)
    assert [s for s, values in record.points.items() if "test/train_loss" in values] == [3, 6, 9, 12]
    assert [s for s, values in record.points.items() if values.get("test/val_loss") == 1.5] == [6, 12]
    assert record.images == [("samples/ema", 5), ("samples/ema", 10), ("samples/ema", 12)]
    assert record.points[6]["test/train_loss"] == record.losses[20]  # the loss of step 6, which begins at position 20
    assert not any("odd" in key for values in record.points.values() for key in values)
    assert record.points[3]["test/images_per_second"] > 0
    assert record.points[3]["efficiency/test_step_ms"] > 0 and "efficiency/step_ms" not in record.points[3]
    assert record.lines[0].startswith("test: step 3/12, loss ")


def test_a_stop_request_saves_and_the_same_call_goes_on(tmp_path: Path) -> None:
    _, whole = run(tmp_path / "whole")
    first, before = run(tmp_path / "run", stop_after=6)  # the seventh step sees it
    assert (first.finished, first.step) == (False, 7)
    second, after = run(tmp_path / "run")
    assert (second.finished, second.resumed_from) == (True, 28)
    assert not any("goes on" in line for line in before.lines)
    assert after.lines[0] == "goes on from step 7 of 12, its last whole checkpoint"
    assert before.losses | after.losses == whole.losses
    assert not before.losses.keys() & after.losses.keys()
    third, nothing = run(tmp_path / "run")
    assert third.finished and third.step == 12 and not nothing.losses
    assert third.loss == second.loss == whole.losses[44]
    json.dumps(asdict(third), allow_nan=False)


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    _, whole = run(tmp_path / "long", steps=16)
    run(tmp_path / "short", steps=8)
    summary, rest = run(tmp_path / "new", steps=16, begin_from=(tmp_path / "short", 32))
    assert summary.resumed_from == 32
    assert rest.losses == {position: value for position, value in whole.losses.items() if position >= 32}
    with pytest.raises(UserError, match="no whole checkpoint to go on from"):
        run(tmp_path / "other", begin_from=(tmp_path / "nowhere", 32))


def test_runs_of_two_lengths_share_what_comes_before_the_decay(tmp_path: Path) -> None:
    """Warm-up-stable-decay: the checkpoint where the decay begins stays, and a run of another length goes on there."""
    wsd = {"schedule": "wsd", "decay": 0.5}
    _, whole = run(tmp_path / "long", steps=20, **wsd)
    run(tmp_path / "short", steps=12, **wsd)  # stable for 6 steps: position 24
    kept = {saved.position for saved in listing(tmp_path / "short")}
    assert 24 in kept and len(kept) == 3
    summary, rest = run(tmp_path / "new", steps=20, begin_from=(tmp_path / "short", 24), **wsd)
    assert summary.resumed_from == 24
    assert rest.losses == {position: value for position, value in whole.losses.items() if position >= 24}


def test_a_stretch_to_skip_is_left_out(tmp_path: Path) -> None:
    summary, record = run(tmp_path, skip=((12, 20), (40, 48)))
    assert summary.finished and summary.position == 48
    assert sorted(record.losses) == [0, 4, 8, 20, 24, 28, 32, 36]


def test_a_nan_loss_on_a_log_step(tmp_path: Path) -> None:
    summary, record = run(tmp_path, task=spoilt(0, 4, 8, 44))  # steps 1 to 3, of which 3 is logged, and the last one
    assert [progress.loss for progress in record.progress] == [None, record.losses[20], record.losses[32], None]
    assert record.lines[0].startswith("test: step 3/12, loss not finite, ")
    assert "test/train_loss" not in record.points[3] and record.points[3]["test/images_per_second"] > 0
    assert (summary.finished, summary.bad_steps, summary.loss) == (True, 4, record.losses[40])
    again, _ = run(tmp_path, task=spoilt(44))
    assert (again.loss, again.bad_steps, again.resumed_from) == (summary.loss, 4, 48)
    for value in (*map(asdict, record.progress), asdict(summary), asdict(again)):
        json.dumps(value, allow_nan=False)


def test_no_good_step_no_loss(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, steps=2, task=spoilt(0, 4))
    assert (summary.finished, summary.loss, summary.bad_steps) == (True, None, 2)


def test_a_stop_on_a_bad_step_saves_and_the_resumed_run_is_as_the_unstopped_one(tmp_path: Path) -> None:
    bad = {"task": spoilt(*range(20, 40, 4)), "max_bad_steps": 5, "keep": 1}
    unstopped, whole = run(tmp_path / "whole", **bad)
    assert unstopped.skipped == ((20, 40),) and unstopped.finished and unstopped.bad_steps == 5
    first, before = run(tmp_path / "run", stop_after=6, token=1, **bad)  # in the seventh step, the second bad one
    assert (first.finished, first.position, first.bad_steps) == (False, 28, 2)
    assert [saved.position for saved in listing(tmp_path / "run")] == [28, 16]  # one from before the bad steps stays
    second, middle = run(tmp_path / "run", stop_after=1, token=2, **bad)
    assert (second.resumed_from, second.position, second.bad_steps) == (28, 36, 4)
    third, after = run(tmp_path / "run", token=3, **bad)
    assert third.resumed_from == 36 and third.skipped == ((20, 40),)
    assert "back to the checkpoint at 16" in after.lines[1] and after.lines[1] == whole.lines[3]
    assert before.losses | middle.losses | after.losses == whole.losses
    assert (third.loss, third.bad_steps) == (unstopped.loss, 5)
    assert [saved.position for saved in listing(tmp_path / "run")] == [48]


def test_bad_steps_that_began_in_the_shorter_run_are_left_out_of_the_longer(tmp_path: Path) -> None:
    bad = {"task": spoilt(28, 32, 36), "max_bad_steps": 3, "keep": 1}
    unstopped, whole = run(tmp_path / "long", steps=16, **bad)
    run(tmp_path / "short", steps=8, **bad)  # its last step is a bad one
    summary, rest = run(tmp_path / "new", steps=16, begin_from=(tmp_path / "short", 32), **bad)
    assert (summary.resumed_from, summary.skipped) == (32, ((28, 40),))
    assert rest.losses == {position: value for position, value in whole.losses.items() if position >= 16}
    assert (summary.loss, summary.bad_steps) == (unstopped.loss, 3)


def test_a_longer_run_whose_own_checkpoints_are_damaged_goes_back_to_the_shorter_ones(tmp_path: Path) -> None:
    bad, task = {"max_bad_steps": 3, "keep": 1}, spoilt(36, 40, 44)
    _, whole = run(tmp_path / "long", steps=16, task=task, **bad)

    def damaging(position: int) -> Iterator[dict[str, Any]]:
        for batch in task.batches(position):
            if batch["position"] == 44:
                (saved,) = listing(tmp_path / "new")
                manifest = tmp_path / "new" / saved.name / "manifest.json"
                while not manifest.exists():  # the saver's thread is at it
                    time.sleep(0.01)
                manifest.write_text("{}")
            yield batch

    run(tmp_path / "short", steps=8, task=task, **bad)
    summary, rest = run(
        tmp_path / "new", steps=16, begin_from=(tmp_path / "short", 32), task=Task("test", loss, damaging), **bad
    )
    assert summary.finished and summary.skipped == ((36, 48),)
    assert any("is not whole" in line for line in rest.lines)
    assert rest.losses == {position: value for position, value in whole.losses.items() if position >= 32}


def test_a_spike_is_said_and_counted(tmp_path: Path) -> None:
    def large(position: int) -> Iterator[dict[str, Any]]:
        for batch in batches(position):
            yield batch | {"x": batch["x"] * (30 if batch["position"] == 264 else 1)}

    task = Task("test", loss, large)
    _, record = run(tmp_path / "whole", steps=72, task=task, learning_rate=1e-4)
    (line,) = [line for line in record.lines if "spikes" in line]
    assert "spikes at position 264" in line
    assert [record.points[step]["test/spikes"] for step in (66, 69, 72)] == [0, 1, 1]
    run(tmp_path / "run", steps=72, task=task, learning_rate=1e-4, stop_after=60)
    _, rest = run(tmp_path / "run", steps=72, task=task, learning_rate=1e-4)
    assert line in rest.lines and rest.points[72]["test/spikes"] == 1


def test_a_full_disk_ends_the_run_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, stop_after=5)
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        run(tmp_path)
    monkeypatch.undo()
    summary, _ = run(tmp_path)
    assert summary.finished and summary.resumed_from == 24


def test_a_loader_that_disagrees_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="batch at position 4 where 0 was asked for"):
        run(tmp_path, task=Task("test", loss, lambda position: batches(position + 4)))


def test_the_loader_is_closed(tmp_path: Path) -> None:
    closed = []

    def watched(position: int) -> Iterator[dict[str, Any]]:
        try:
            yield from batches(position)
        finally:
            closed.append(position)

    run(tmp_path, task=Task("test", loss, watched), skip=((8, 12),))
    assert closed == [0, 12]


def test_a_line_of_progress() -> None:
    assert str(Progress("diffusion", 10, 100, 0.123456, 250.4, 75)) == (
        "diffusion: step 10/100, loss 0.12346, 250.4 images/s, 00:01:15 left"
    )
