"""Images of several shapes through all stages: killed and resumed by the trained stages' ranks in plain processes, and
the whole pipeline through real Ray, against one process."""

from __future__ import annotations

import json
import os
import random
import runpy
from pathlib import Path
from typing import Any

import pytest

from pipeline.files import read_json

HERE = Path(__file__).parent
RAY = runpy.run_path(str(HERE / "test_ray.py"))
curve, finish, start = RAY["curve"], RAY["finish"], RAY["start"]
STEPS, BATCH, SAVE_EVERY = 12, 8, 3
SHAPES = [[40, 24], [32, 32], [24, 40]]  # height, width
IMAGES = [
    "data.source={kind: shapes, count: 110, sizes: [[40, 40], [60, 34], [32, 48]]}",
    "data.size=32",
    "data.buckets={multiple: 8}",
    "data.shard_size=40",
    "data.augment={crop: random, flip: true}",
]
CONFIG = """\
run: {name: shapes}
data: {source: {kind: digits}}
autoencoder:
  model: {kind: kl, width: 8, multipliers: [1, 2, 2], blocks: 1, latent_channels: 2, groups: 4, attention: false}
  training: {precision: fp32,
             batch_size: 8, steps: 8, save_every: 2, half_lives: [100], log_every: 1, validate_every: 4,
             preview_every: 4}
latents: {views: [as_is, flip, crop]}
diffusion:
  backbone: {kind: dit, width: 16, depth: 1, heads: 2, patch: 2}
  training: {precision: fp32,
             batch_size: 8, steps: 8, save_every: 2, half_lives: [100], log_every: 1, validate_every: 4,
             preview_every: 4}
evaluate: {samples: 12, steps: 2, batch_size: 4, bootstrap: 4, extractor: {kind: classifier, steps: 4}}
cluster: {workers: 2, threads: 1}
tracking: {deadline: 1}
"""


# ---- ranks in plain processes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resumed(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of both trained stages in buckets: whole, killed and resumed on two ranks, then on one; at ZeRO 2 and 3."""
    root = tmp_path_factory.mktemp("resumed")
    seed = int(os.environ.get("RESUME_SEED", random.randrange(10**6)))
    print(f"RESUME_SEED={seed}")
    chance = random.Random(seed)
    runs: list[dict[str, Any]] = []

    def add(subject: str, name: str, folder: str, **more: Any) -> None:
        runs.append(
            {"out": str(root / f"{subject}-{name}"), "folder": str(root / f"{subject}-{folder}"), "root": str(root)}
            | {"subject": subject, "stage": 2, "world": 2, "accumulation": 1, "overrides": IMAGES}
            | {"training": {"steps": STEPS, "save_every": SAVE_EVERY}} | more
        )  # fmt: skip

    add("autoencoder", "prepare", "none", world=1, kind="prepare")
    for subject in ("autoencoder", "diffusion"):
        add(subject, "whole", "whole")
        # After the first checkpoint: a first Adam step is g / (|g| + 1e-8), which turns the rounding of
        # a gradient that should be zero (a bias before a GroupNorm) into a whole step; world sizes round differently.
        add(subject, "killed", "cut", kill=chance.randrange(SAVE_EVERY + 1, STEPS - 1), kill_rank=chance.randrange(2))
        add(subject, "alone", "alone", world=1, seed=1, copy=str(root / f"{subject}-cut"))
        add(subject, "resumed", "cut", seed=1)
    add("diffusion", "zero3", "zero3", stage=3, accumulation=2)
    train(runs)
    return root


def steps(root: Path, name: str) -> dict[int, dict[str, Any]]:
    """position -> the last row that a run wrote for it."""
    rows = [json.loads(line) for line in (root / f"{name}.steps.jsonl").read_text().splitlines()]
    return {row["position"]: row for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["autoencoder", "diffusion"])
def test_killed_and_resumed_is_equal_bit_for_bit(resumed: Path, subject: str) -> None:
    whole, again = steps(resumed, f"{subject}-whole"), steps(resumed, f"{subject}-resumed")
    assert max(again) == (STEPS - 1) * BATCH and len(whole) == STEPS
    assert all(whole[position] == row for position, row in again.items())
    ends = [json.loads((resumed / f"{subject}-{name}.json").read_text()) for name in ("whole", "resumed")]
    for what in ("live", "ema", "snapshots"):
        assert ends[0][what] == ends[1][what]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder-alone", "diffusion-alone", "diffusion-zero3"])
def test_another_world_size_or_stage(resumed: Path, name: str) -> None:
    whole, other = steps(resumed, f"{name.partition('-')[0]}-whole"), steps(resumed, name)
    assert max(other) == (STEPS - 1) * BATCH
    for position, row in other.items():
        assert float.fromhex(row["loss"]) == pytest.approx(float.fromhex(whole[position]["loss"]), rel=1e-5)


# ---- the whole pipeline ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pipeline_through_ray(tmp_path: Path, ldm: Any, database: bytes) -> None:
    """Two workers; the losses are those of one rank in this process. All shapes are in what each stage leaves."""
    config = tmp_path / "shapes.yaml"
    config.write_text(CONFIG)
    said = ldm("diffusion", "--config", str(config), *IMAGES, f"run.root={tmp_path / 'one'}", "cluster.workers=1")
    assert said.code == 0, said.err
    root = tmp_path / "two"
    root.mkdir()
    (root / "mlflow.db").write_bytes(database)
    finish(start("train_ldm", config, root, *IMAGES), config)
    for stage in ("autoencoder", "diffusion"):
        for key in ("train_loss", "val_loss"):
            found, alone = curve(root, stage, key), curve(tmp_path / "one", stage, key)
            assert found.keys() == alone.keys() and len(found) == (8 if key == "train_loss" else 2)
            for step, values in alone.items():
                assert found[step] == pytest.approx(values, rel=1e-4), (stage, key, step)  # latents are in float16
    made = {path.parent.parent.name: path.parent for path in root.glob("artifacts/*/*/manifest.json")}
    listing = read_json(made["encode"] / "shards.json")["shards"]
    assert {shard["bucket"] for shard in listing} == {0, 1, 2}
    assert sum(shard["count"] for shard in listing) == 110
    report = read_json(made["evaluate"] / "report.json")
    assert sum(report["buckets"]["samples"].values()) == 12 and report["reconstruction"]["psnr"] > 5
    model = made["register"] / "model"
    assert read_json(model / "config.json")["image"]["buckets"] == SHAPES
    said = ldm("sample", str(model), "--out", str(tmp_path / "s"), "-n", "2", "--size", "24x40", "--steps", "1")
    assert said.code == 0, said.err
    from PIL import Image

    with Image.open(tmp_path / "s" / "000001.png") as image:
        assert image.size == (40, 24)
    said = ldm("sample", str(model), "--out", str(tmp_path / "t"), "--size", "24x24")
    assert said.code == 2 and "none of this model's: 32x32, 40x24, 24x40" in said.err
    said = ldm("run", "--config", str(config), *IMAGES, f"run.root={root}", "--dry-run")
    assert "buckets, height x width: 40x24 (latents 10x6), 32x32 (latents 8x8), 24x40 (latents 6x10)" in said.out


def test_a_bucket_with_too_few_images_ends_the_run_after_ingest(tmp_path: Path, ldm: Any) -> None:
    config = tmp_path / "shapes.yaml"
    config.write_text(CONFIG)
    given = [*IMAGES, f"run.root={tmp_path / 'root'}", "diffusion.training.batch_size=64", "diffusion.backbone.patch=1"]
    said = ldm("run", "--config", str(config), *given)
    assert said.code == 2 and "training images, fewer than the 64 lanes of a batch" in said.err
    assert "set data.buckets.shapes=[" in said.err or "a smaller `max_ratio`" in said.err
    assert sorted(path.name for path in (tmp_path / "root" / "artifacts").iterdir()) == ["ingest"]
