"""torch.compile and activation checkpointing change nothing but speed: real training steps of both stages on real
artifacts, at ZeRO 0 and 2, with and without them."""

from __future__ import annotations

import importlib
import itertools
import os
import runpy
import shutil
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import config as configs
from pipeline.artifacts import Store
from pipeline.cluster import cluster
from pipeline.schema.names import INPUTS
from pipeline.stages import graph
from pipeline.tracking import tracker
from pipeline.training.engine import Engine
from pipeline.training.ranks import open_ranks

STEPS = 3
UNET = "{kind: unet, width: 8, multipliers: [1, 2], attention: [false, true], blocks: 1, groups: 4, head_width: 8}"
DIT = (
    "{kind: dit, width: 16, depth: 2, heads: 2, patch: 2, rope: true, rms_norm: true, qk_norm: true, long_skips: true}"
)
SUBJECTS = {
    "autoencoder": ("autoencoder", "autoencoder.model.attention=true"),
    "dit": ("diffusion", f"diffusion.backbone={DIT}"),
    "unet": ("diffusion", f"diffusion.backbone={UNET}"),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config and the artifacts up to the latents."""
    folder = tmp_path_factory.mktemp("speed")
    conftest = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
    for i in range(40):
        path = folder / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (12, 12, 3), np.uint8)).save(path)
    (folder / "small.yaml").write_text(conftest["CONFIG"].format(root=folder / "root", images=folder / "images"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "Cluster", conftest["OneProcess"])
        patch.setattr(tracker, "start", lambda *_: conftest["NoShipper"]())
        graph.run(configs.load(folder / "small.yaml"), "encode")
    return folder


def losses(folder: Path, subject: str, **options: Any) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of the first steps, with `options` of the training section."""
    stage, override = SUBJECTS[subject]
    given = [f"{stage}.training.{key}={str(value).lower()}" for key, value in options.items()]
    config = configs.load(folder / "small.yaml", [override, *given])
    made = {artifact.stage: artifact for artifact in Store(folder / "root").all()}
    module, ranks = importlib.import_module(f"pipeline.tasks.{stage}"), open_ranks()
    model, task = module.build(config, {name: made[name] for name in INPUTS[stage] if name in made}, ranks)
    torch.manual_seed(0)
    for parameter in model.parameters():  # so that nothing hides behind a zero
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    engine = Engine(model, task.loss, getattr(config, stage).training, ranks)
    stats = [engine.step(batch, batch["position"]) for batch in itertools.islice(task.batches(0), STEPS)]
    engine.close()
    return [s.loss for s in stats], [s.grad_norm for s in stats]


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_activation_checkpointing(prepared: Path, subject: str, zero_stage: int) -> None:
    plain = losses(prepared, subject, zero_stage=zero_stage)
    recomputed = losses(prepared, subject, zero_stage=zero_stage, activation_checkpointing=True)
    assert recomputed[0] == pytest.approx(plain[0], rel=1e-6)
    assert recomputed[1] == pytest.approx(plain[1], rel=1e-5)
    assert len(set(plain[0])) == STEPS  # it trains


def compiled_is_plain(folder: Path, subject: str, zero_stage: int, checkpointing: bool = False) -> None:
    from torch._dynamo.utils import counters

    plain = losses(folder, subject, zero_stage=zero_stage)
    torch.compiler.reset()
    counters.clear()
    compiled = losses(folder, subject, zero_stage=zero_stage, compile=True, activation_checkpointing=checkpointing)
    assert counters["stats"]["unique_graphs"] > 0
    assert compiled[0] == pytest.approx(plain[0], rel=1e-5)
    assert compiled[1] == pytest.approx(plain[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subject", "zero_stage", "checkpointing"),
    [("autoencoder", 0, False), ("autoencoder", 2, True), ("dit", 0, True), ("unet", 0, False), ("unet", 2, True)],
)
def test_captured_as_graphs(
    prepared: Path, subject: str, zero_stage: int, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch.compile captures, forward and backward, run as it is: without inductor's minutes of C++."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    compile_by = partialmethod(DeepSpeedEngine.compile, backend="aot_eager")
    monkeypatch.setattr(DeepSpeedEngine, "compile", compile_by)
    compiled_is_plain(prepared, subject, zero_stage, checkpointing)


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "zero_stage"), [("dit", 2), ("autoencoder", 0), ("unet", 0), ("unet", 2)])
def test_compiled(prepared: Path, subject: str, zero_stage: int) -> None:
    """By inductor: half a minute of compiling for the DiT, two minutes and more for those of convolutions."""
    if shutil.which("g++") is None:
        pytest.skip("no g++: inductor cannot compile for a CPU")
    if subject != "dit" and not os.environ.get("LDM_SLOW_TESTS"):
        pytest.skip("minutes of compiling: set LDM_SLOW_TESTS=1 to run it")
    compiled_is_plain(prepared, subject, zero_stage)
