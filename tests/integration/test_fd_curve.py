"""The curve of Fréchet distances in training: fixed noise and count, the same points after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import config as configs
from pipeline.artifacts import Store
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.stages import graph

STEPS, EVERY, BATCH = 6, 2, 8
CONFIG = """\
run: {{name: digits, root: {root}}}
data: {{source: {{kind: digits}}, size: 8, channels: 1, split: {{val_fraction: 0.2}}}}
autoencoder:
  model: {{kind: kl, width: 8, multipliers: [1, 2], blocks: 1, latent_channels: 2, groups: 4, attention: false}}
  training: {{precision: fp32, steps: 2, batch_size: 8, half_lives: [100]}}
diffusion:
  backbone: {{kind: dit, width: 16, depth: 1, heads: 2, patch: 2}}
  training: {{precision: fp32,
             steps: 6, batch_size: 8, half_lives: [10], learning_rate: 1e-2, save_every: 2, log_every: 1}}
  fd: {{steps: 3}}
evaluate: {{samples: 60, bootstrap: 5, extractor: {{kind: classifier, steps: 60}}}}
cluster: {{workers: 1, threads: 1}}
"""


class Curves:
    """A log that keeps all it is given but the rate."""

    def __init__(self) -> None:
        self.points: dict[int, dict[str, float]] = {}

    def metrics(self, values: dict[str, float], step: int) -> None:
        kept = {
            key: value for key, value in values.items() if "per_second" not in key and not key.startswith("efficiency/")
        }
        self.points.setdefault(step, {}).update(kept)

    def image(self, key: str, image: Any, step: int, cells: Any = ()) -> None: ...


def train(config: Config, folder: Path, stop_after: int | None = None) -> dict[int, dict[str, float]]:
    """The diffusion stage by the real loop and engine, stopped after a step if that is said; what it logged."""
    from pipeline.schema.names import INPUTS
    from pipeline.tasks import diffusion
    from pipeline.training import loop
    from pipeline.training.engine import Engine
    from pipeline.training.ranks import open_ranks

    made = {artifact.stage: artifact for artifact in Store(config.run.root).all()}
    ranks, training, seen, log = open_ranks(), config.diffusion.training, [0], Curves()
    network, task = diffusion.build(config, {name: made[name] for name in INPUTS["diffusion"] if name in made}, ranks)

    def count(position: int, stats: Any) -> None:
        seen[0] = position // BATCH + 1

    loop.train(
        Engine(network, task.loss, training, ranks), task, training, ranks, folder, log,
        lambda: stop_after is not None and seen[0] >= stop_after, on_step=count, progress=lambda progress: None,
    )  # fmt: skip
    return log.points


def test_the_curve(tmp_path: Path, ldm: Any) -> None:
    path = tmp_path / "digits.yaml"
    path.write_text(CONFIG.format(root=tmp_path / "root"))
    plain, config = configs.load(path), configs.load(path, [f"diffusion.fd.every={EVERY}"])
    with_fewer = configs.load(path, ["diffusion.fd.every=3", "diffusion.fd.samples=50"])
    graph.run(plain, "encode")

    whole = train(config, tmp_path / "whole")
    curve = {step: values["diffusion/fd_60"] for step, values in whole.items() if "diffusion/fd_60" in values}
    assert sorted(curve) == [2, 4, 6] and len(set(curve.values())) == 3
    assert len({values["diffusion/fd_60_real"] for step, values in whole.items() if step in curve}) == 1

    # stopped between two points and resumed: every point is there, and the same to the last bit
    first = train(config, tmp_path / "stopped", stop_after=3)
    rest = train(config, tmp_path / "stopped")
    assert min(rest) > max(first) >= 3
    assert {step: values.get("diffusion/fd_60") for step, values in (first | rest).items()} == {
        step: values.get("diffusion/fd_60") for step, values in whole.items()
    }

    # the losses of a run without it, bit for bit; another count has another name
    losses = {step: values["diffusion/train_loss"] for step, values in train(plain, tmp_path / "plain").items()}
    assert losses == {step: values["diffusion/train_loss"] for step, values in whole.items()}
    assert "diffusion/fd_50" in train(with_fewer, tmp_path / "fewer")[3]

    # through the graph: in the spool, with what it rests on as a tag; no part of the fingerprint
    done = ldm("diffusion", "--config", str(path), f"diffusion.fd.every={EVERY}")
    assert done.code == 0, done.err
    artifact = next(a for a in Store(tmp_path / "root").all() if a.stage == "diffusion")
    lines = [json.loads(line) for file in artifact.path.glob("work/spool/*.jsonl") for line in file.open()]
    spooled = json.dumps(lines, ensure_ascii=False)
    assert "diffusion/fd_60" in spooled and "Fréchet distance of 60 samples (heun, 3 steps" in spooled
    resolved = configs.load(path, ["diffusion.training.precision=fp32", "autoencoder.training.precision=fp32"])
    steps = {step.stage: step.fingerprint for step in graph.plan(graph.absolute(resolved), Store(tmp_path / "root"))}
    assert steps["diffusion"] == artifact.fingerprint


def test_too_few_images_are_said_before_training(tmp_path: Path, ldm: Any) -> None:
    path = tmp_path / "digits.yaml"
    path.write_text(CONFIG.format(root=tmp_path / "root"))
    graph.run(configs.load(path), "encode")
    done = ldm("diffusion", "--config", str(path), "diffusion.fd.every=1", "evaluate.samples=40")
    assert done.code == 2 and "40 images a set" in done.err and "Traceback" not in done.err


def test_a_curve_of_fewer_than_fifty_is_no_valid_config(tmp_path: Path) -> None:
    path = tmp_path / "digits.yaml"
    path.write_text(CONFIG.format(root=tmp_path / "root"))
    with pytest.raises(UserError, match=r"override `diffusion\.fd\.samples=49`: `diffusion\.fd\.samples`"):
        configs.load(path, ["diffusion.fd.samples=49"])
