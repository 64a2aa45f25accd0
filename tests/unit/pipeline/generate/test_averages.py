"""Averages kept by the engine, their snapshots, and weights made of them after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models import ema
from pipeline.artifacts import Artifact
from pipeline.errors import UserError
from pipeline.generate import averages
from pipeline.schema.training import Training
from pipeline.training import snapshots
from pipeline.training.engine import Engine
from pipeline.training.ranks import open_ranks

BATCH = 8


def settings(**more: Any) -> Training:
    base = {"batch_size": BATCH, "steps": 24, "learning_rate": 1e-2, "zero_stage": 0, "half_lives": (16,)}
    return Training.model_validate(base | {"average_lengths": [0.05, 0.1], "snapshot_every": 2 * BATCH} | more)


def make_engine(training: Training) -> Engine:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Linear(16, 5))
    return Engine(
        model, lambda module, batch: {"loss": (module(batch["x"]) - batch["x"]).square().mean()}, training, open_ranks()
    )


def run(engine: Engine, folder: Path | None = None, bad: int = -1) -> list[dict[str, torch.Tensor]]:
    """All steps, with snapshots as the loop makes them; gives the weights after each good step."""
    live = []
    for step in range(engine.training.steps):
        x = torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(step))
        skipped = engine.step({"x": x * torch.inf if step == bad else x}, step * BATCH).skipped
        assert skipped == (step == bad)
        if not skipped:
            live.append(engine.export("live"))
            if folder and snapshots.due(engine.training, engine.averaged):
                snapshots.save(engine, folder)
    if folder:
        snapshots.save(engine, folder)
    return live


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
def test_what_is_kept_is_the_integral_of_the_profile(stage: int) -> None:
    """Against float64 sums of the weights after each step; a bad step counts for nothing."""
    engine = make_engine(settings(zero_stage=stage, half_lives=(16, 80)))
    live = run(engine, bad=10)
    assert engine.averaged == 23 * BATCH == 8 * len(live)
    for length in (0.05, 0.1):
        edges = (np.arange(24) / 23) ** (ema.exponent(length) + 1)
        kept = engine.export(f"length-{length}")
        for name in ("0.weight", "2.bias"):
            wanted = sum(share * each[name].double() for share, each in zip(np.diff(edges), live, strict=True))
            torch.testing.assert_close(kept[name].double(), wanted, rtol=1e-5, atol=1e-6)
    with engine.weights("length-0.1"):
        assert not engine.partition.module.training
    assert not torch.equal(engine.export("ema", 80)["0.weight"], engine.export("ema")["0.weight"])
    engine.close()


def test_when_snapshots_are_due_and_how_many() -> None:
    def times(**more: Any) -> list[int]:
        training = settings(**more)
        found = [BATCH * step for step in range(training.steps + 1) if snapshots.due(training, BATCH * step)]
        total = training.steps * BATCH
        assert snapshots.count(training) == len({*found, total})
        return found

    assert times(steps=8) == [16, 32, 48, 64]
    assert times(steps=8, snapshot_every=20) == [24, 40, 64]  # the first step that reaches 20, 40, 60
    assert times(steps=8, snapshot_every=1000) == []
    assert snapshots.count(settings(snapshot_every=None)) == 0 and not snapshots.due(settings(snapshot_every=None), 16)


def test_settings_that_contradict_themselves() -> None:
    for more, said in (
        ({"average_lengths": []}, "snapshot_every"),
        ({"average_lengths": [0.1, 0.1]}, "name each average once"),
        ({"half_lives": [5, 5]}, "name each average once"),
        ({"average_lengths": [0.3]}, "less than 0.288"),
    ):
        with pytest.raises(ValueError, match=said):
            settings(**more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, torch.Tensor]]]:
    """An artifact's folder with the snapshots of 24 steps, and averages that were kept beside."""
    folder = tmp_path_factory.mktemp("artifact")
    engine = make_engine(settings(average_lengths=[0.05, 0.1, 0.15]))
    run(engine, folder / snapshots.FOLDER)
    kept = {which: engine.export(which) for which in ("ema", "length-0.05", "length-0.1", "length-0.15")}
    for which in ("ema", "length-0.05"):
        save_file(kept[which], folder / f"{which}.safetensors")
    engine.close()
    return folder, kept


def artifact(folder: Path, content: str = "c" * 64) -> Artifact:
    return Artifact("diffusion", "f" * 16, folder, content, {}, {}, {}, {})


def test_made_afterwards_is_kept_in_training(trained: Any, tmp_path: Path) -> None:
    folder, kept = trained
    for length in ("0.1", "0.15"):
        recipe = averages.plan(folder / snapshots.FOLDER, float(length), use=("0.05", "0.1"))
        assert recipe.samples == 24 * BATCH and len(recipe.paths) == 24 and recipe.misfit < 1e-3
        averages.make(recipe, tmp_path / "made.safetensors")
        made = load_file(tmp_path / "made.safetensors")
        for name, value in made.items():
            torch.testing.assert_close(value, kept[f"length-{length}"][name], rtol=1e-5, atol=1e-6)
        assert torch.equal(made["1.num_batches_tracked"], torch.tensor(24))  # a buffer: as it was at the end
        assert torch.equal(made["1.running_mean"], kept["ema"]["1.running_mean"])
    first = (tmp_path / "made.safetensors").read_bytes()
    averages.make(recipe, tmp_path / "made.safetensors")
    assert (tmp_path / "made.safetensors").read_bytes() == first


def test_an_average_that_ends_earlier(trained: Any, tmp_path: Path) -> None:
    folder, _ = trained
    recipe = averages.plan(folder / snapshots.FOLDER, 0.05, at=101)
    assert recipe.samples == 96  # the newest snapshot up to there: it is one of them
    averages.make(recipe, tmp_path / "made.safetensors")
    stored = load_file(folder / snapshots.FOLDER / "length-0.05-000000000096.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in load_file(tmp_path / "made.safetensors").items())
    with pytest.raises(UserError, match="no snapshot up to 9 samples; the first is at 16"):
        averages.plan(folder / snapshots.FOLDER, 0.05, at=9)


def test_names_of_weights(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, kept = trained
    of = artifact(folder)
    assert averages.weights_path(of) == folder / "ema.safetensors"
    assert averages.weights_path(of, "length-0.05") == folder / "length-0.05.safetensors"
    made = averages.weights_path(of, "length-0.150")  # not in the artifact: made of snapshots, once
    assert made == folder / "work" / "averages" / "length-0.15.safetensors"
    torch.testing.assert_close(load_file(made)["0.weight"], kept["length-0.15"]["0.weight"])
    assert averages.weights_path(of, str(made)) == made and not capsys.readouterr().out
    averages.warned(averages.plan(folder / snapshots.FOLDER, 0.01, use=("0.15",)))
    assert "meet this profile to" in capsys.readouterr().out
    with pytest.raises(UserError, match="made of a training with content cccccccccccc, but the model is diffusion/"):
        averages.weights_path(artifact(folder, "d" * 64), str(made))
    for which, said in (
        ("ema-7", "has ema, length-0.05; or length-L"),
        ("length-long", "expected a number, such as length-0.1"),
        ("length-0.3", "--length: length: expected a share"),
        (str(tmp_path / "no.safetensors"), "does not exist"),
    ):
        with pytest.raises(UserError, match=said):
            averages.weights_path(of, which)
    with pytest.raises(UserError, match="holds no snapshots; train with `average_lengths"):
        averages.weights_path(artifact(tmp_path), "length-0.1")
    (tmp_path / "cut.safetensors").write_bytes(made.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        averages.weights_path(of, str(tmp_path / "cut.safetensors"))


def test_only_what_a_whole_training_leaves_stays(tmp_path: Path) -> None:
    training = settings(average_lengths=[0.05])
    for samples in (16, 24, 32, 40, 48, 64):
        save_file({}, tmp_path / f"length-0.05-{samples:012d}.safetensors")
    (tmp_path / "length-0.05-000000000048.safetensors.0f.tmp").touch()
    snapshots.tidy(tmp_path, training, 40)
    times = [int(path.stem.rpartition("-")[2]) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert times == [16, 32, 40]
    snapshots.take_over(tmp_path, tmp_path / "longer", training, 40)  # its end is not one of ours
    assert [path.name[-12 - 12 : -12] for path in sorted((tmp_path / "longer").iterdir())] == [
        "000000000016",
        "000000000032",
    ]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(settings())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(snapshots, "write", full)
    with pytest.raises(UserError, match=r"a snapshot cannot be written .*No space left"):
        snapshots.save(engine, tmp_path)
    engine.close()
