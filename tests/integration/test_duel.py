"""Training against a discriminator, and with a codebook: stopped by SIGKILL and resumed on real artifacts, at the same
or another world size; the same losses at every ZeRO stage and however a batch is cut."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

STEPS, BATCH = 12, 8

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs."""
    folder = tmp_path_factory.mktemp("duel")
    seed = int(os.environ.get("RESUME_SEED", random.randrange(10**6)))
    print(f"RESUME_SEED={seed}")
    chance, runs = random.Random(seed), [{"kind": "prepare", "out": str(folder / "prepare"), "world": 1}]

    def add(subject: str, name: str, stage: int, world: int = 2, accumulation: int = 1, **more: Any) -> None:
        runs.append(
            {"subject": subject, "out": str(folder / f"{subject}-{name}"),
             "folder": str(folder / f"f-{subject}-{name}"), "stage": stage, "world": world,
             "accumulation": accumulation, "training": {"steps": STEPS, "save_every": 3}} | more
        )  # fmt: skip

    for subject, stages in (("adversarial", (0, 2)), ("vq", (2,))):
        for stage in stages:
            killed = str(folder / f"f-{subject}-killed-{stage}")
            # after the discriminator came in at step 4, so that there is a state of it to lose
            kill = {"kill": chance.randrange(7, STEPS - 1), "kill_rank": chance.randrange(2), "whole": 6 * BATCH}
            add(subject, f"whole-{stage}", stage)
            add(subject, f"killed-{stage}", stage, **kill)
            add(subject, f"to1-{stage}", stage, world=1, seed=1, copy=killed)
            add(subject, f"resumed-{stage}", stage, seed=1, folder=killed)
    add("adversarial", "cut", 2, accumulation=2)
    add("adversarial", "stage3", 3)
    add("vq", "cut", 0, accumulation=2)
    train([{"root": str(folder)} | each for each in runs])
    return folder


def steps(root: Path, name: str) -> dict[int, dict[str, Any]]:
    rows = [json.loads(line) for line in (root / f"{name}.steps.jsonl").read_text().splitlines()]
    return {row["position"]: row for row in rows}


def end(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / f"{name}.json").read_text())


def points(root: Path, name: str) -> dict[tuple[int, str], float]:
    found = {(step, key): value for step, values in end(root, name)["points"] for key, value in values.items()}
    return {
        key: value
        for key, value in found.items()
        if "per_second" not in key[1] and not key[1].startswith("efficiency/")
    }


@pytest.mark.parametrize(("subject", "stage"), [("adversarial", 0), ("adversarial", 2), ("vq", 2)])
def test_killed_and_resumed_is_equal_bit_for_bit(root: Path, subject: str, stage: int) -> None:
    whole, resumed = steps(root, f"{subject}-whole-{stage}"), steps(root, f"{subject}-resumed-{stage}")
    assert min(resumed) >= 6 * BATCH and max(resumed) == (STEPS - 1) * BATCH
    assert all(whole[position] == row for position, row in resumed.items())
    for what in ("live", "ema"):
        assert end(root, f"{subject}-whole-{stage}")[what] == end(root, f"{subject}-resumed-{stage}")[what]
    curves = points(root, f"{subject}-whole-{stage}")
    for key, value in points(root, f"{subject}-resumed-{stage}").items():
        assert curves[key] == value, key


@pytest.mark.parametrize(("subject", "stage"), [("adversarial", 0), ("adversarial", 2), ("vq", 2)])
def test_another_world_size(root: Path, subject: str, stage: int) -> None:
    whole, resumed = points(root, f"{subject}-whole-{stage}"), points(root, f"{subject}-to1-{stage}")
    assert max(steps(root, f"{subject}-to1-{stage}")) == (STEPS - 1) * BATCH
    for key, value in resumed.items():
        assert value == pytest.approx(whole[key], rel=1e-5, abs=1e-7), key


@pytest.mark.parametrize(("name", "like"), [("adversarial-cut", "adversarial-whole-2"),
                                            ("adversarial-stage3", "adversarial-whole-0"),
                                            ("vq-cut", "vq-whole-2")])  # fmt: skip
def test_neither_accumulation_nor_the_stage_changes_a_curve(root: Path, name: str, like: str) -> None:
    wanted = points(root, like)
    # Adam's first steps of the discriminator divide gradients by their own size, rounding too: 2e-5 on some processors
    rel = 1e-4 if name.startswith("adversarial") else 1e-5
    for key, value in points(root, name).items():
        assert value == pytest.approx(wanted[key], rel=rel, abs=1e-7), key


def test_the_curves_show_the_fight_and_the_codebook(root: Path) -> None:
    adversarial = points(root, "adversarial-whole-2")
    for name in ("discriminator_loss", "adversarial", "adversarial_weight", "r1", "logit_real"):
        assert (4, f"autoencoder/train_{name}") not in adversarial  # steps 1 to 4 are before the start
        assert (6, f"autoencoder/train_{name}") in adversarial
    assert adversarial[6, "autoencoder/train_adversarial_weight"] > 0  # the first step measures, from then on it counts
    assert adversarial[STEPS, "autoencoder/val_perceptual"] > 0
    vq = points(root, "vq-whole-2")
    assert 1 <= vq[STEPS, "autoencoder/val_perplexity"] <= 24
    assert 0 < vq[STEPS, "autoencoder/val_codes_used"] <= 1


def test_a_whole_pipeline_on_a_codebook_with_every_term(small: Any) -> None:
    """Classifier trained, autoencoder, encode, diffusion; a second run finds all of it again."""
    overrides = [
        "autoencoder.model={kind: vq, width: 8, multipliers: [1, 2], blocks: 1, latent_channels: 2, groups: 4, "
        "attention: false, codes: 16}",
        "data.size=12", "autoencoder.loss.ssim=0.1", "autoencoder.loss.perceptual={kind: classifier, steps: 2}",
        "autoencoder.loss.adversarial={weight: 0.5, start: 2, width: 8, layers: 2}", "diffusion.backbone.patch=2",
    ]  # fmt: skip
    first = small.run("diffusion", *overrides)
    assert first.code == 0, first.err
    assert "perceptual distance: features of a classifier of the data's own classes (not LPIPS)" in first.out
    assert "of the codes used, perplexity" in first.out
    (manifest,) = small.manifests("autoencoder")
    summary = json.loads(manifest.read_text())["summary"]
    assert summary["perceptual"]["kind"] == "classifier" and len(summary["perceptual"]["digest"]) == 64
    assert {"val_perceptual", "val_ssim", "val_sharpness", "val_codes_used"} <= summary.keys()
    spool = "".join(path.read_text() for path in manifest.parent.glob("work/spool/*.jsonl"))
    assert "ldm.perceptual" in spool and "autoencoder/train_discriminator_loss" in spool
    before = manifest.stat().st_mtime_ns
    assert small.run("diffusion", *overrides).code == 0 and manifest.stat().st_mtime_ns == before
