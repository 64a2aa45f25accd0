"""A rehearsal: what it changes of a config, and a step of each trained stage on synthetic inputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.planning.fits import check_models
from pipeline.preflight import rehearsal
from pipeline.schema.stages import Evaluate
from tests.unit.pipeline.preflight.test_preflight import SMALL, config


def test_a_student_is_rehearsed_without_its_teacher(tmp_path: Path) -> None:
    training = {**SMALL["diffusion"]["training"], "init_from": "teacher"}
    evaluate = Evaluate(sampler="few", steps=2, guidance=1)
    one = config(tmp_path, diffusion={"distil": {"steps": 2}, "training": training})
    found, notes = rehearsal.as_rehearsed(one.model_copy(update={"evaluate": evaluate}), 2)
    assert check_models(found)[0] == 2 and "in place of the student" in notes[0]


def test_the_rehearsal_changes_the_batch_and_little_else(tmp_path: Path) -> None:
    found, notes = rehearsal.as_rehearsed(config(tmp_path), 2)
    for name, micro in (("autoencoder", 8), ("diffusion", 16)):
        training = getattr(found, name).training
        assert (training.batch_size, training.micro_batch) == (2 * micro, micro)
    assert found.diffusion.backbone == SMALL["diffusion"]["backbone"] and notes == []


BUCKETS = {"data": {"buckets": {"max_ratio": 4, "multiple": 8}}}
TOLD = {
    "mood": {"kind": "categorical"},
    "age": {"kind": "continuous", "range": [5, 9]},
    "worn": {"kind": "multi_label", "values": ["hat"], "column": "clothes"},
}
TOLD_ALL = {
    "diffusion": {
        "backbone": {**SMALL["diffusion"]["backbone"], "tokens": "cross"},
        "condition": {"attributes": TOLD, "caption": {"tokens": 12}, "spatial": {"mask": {"channels": 3}}},
    },
    "data": {"source": {"kind": "table", "path": "images.csv", "label": "class"}},
}


TEXT = {
    "data": {"source": {"kind": "text", "path": "texts"}},
    "autoencoder": {
        "model": {"kind": "text", "vocabulary": 300, "length": 16, "latents": 4, "latent_channels": 4, "width": 16,
                  "depth": 1, "heads": 2},
        "training": SMALL["autoencoder"]["training"],
    },
    "diffusion": {"backbone": {**SMALL["diffusion"]["backbone"], "patch": 1}},
}  # fmt: skip


SOUND = {
    "data": {
        "source": {"kind": "sound", "path": "sounds"},
        "size": 32,
        "channels": 1,
        "sound": {"rate": 8000, "seconds": 0.256, "mels": 16, "hop": 64, "window": 256},
    }
}
CLIPS = {
    "data": {"source": {"kind": "clips", "path": "clips"}, "clip": {"frames": 5, "rate": 8}},
    "autoencoder": {
        "model": {"kind": "clips", "width": 8, "multipliers": [1, 2], "blocks": 1, "latent_channels": 4, "groups": 4,
                  "attention": False},
        "training": SMALL["autoencoder"]["training"],
    },
    "diffusion": {"condition": {"kind": "class"}},
}  # fmt: skip
CHANGED = {
    "squares": {}, "buckets": BUCKETS, "conditions": TOLD_ALL, "text": TEXT, "sound": SOUND, "clips": CLIPS
}  # fmt: skip


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_a_step_on_synthetic_inputs(tmp_path: Path, changed: Any) -> None:
    """One rank, in this process: the same builders and engine as training, on images and latents that are made up."""
    from pipeline.stages import graph
    from pipeline.training.ranks import open_ranks

    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    found, _ = rehearsal.as_rehearsed(graph.absolute(config(tmp_path, **changed)), 1)
    if changed is TEXT:  # as `rehearse` has it
        found = found.model_copy(update={"run": found.run.model_copy(update={"root": str(tmp_path / "made")})})
    inputs, notes = rehearsal.make_inputs(found, {}, tmp_path / "made", list(rehearsal.STAGES))
    assert set(inputs) - {"conditions"} == {"ingest", "autoencoder", "encode"} and len(notes) == 2
    assert ("conditions" in inputs) == (changed is TOLD_ALL)
    ranks = open_ranks("cpu")
    assert rehearsal.all_reduce_times(ranks) == []
    for name in rehearsal.STAGES:
        one = rehearsal.stage_step(name, found, inputs, ranks)
        assert one["images"] == getattr(found, name).training.batch_size
        assert one["step"] > 0 and one["load"] > 0 and one["loss"] is not None  # type: ignore[operator]
    assert not (tmp_path / "artifacts").exists()  # nothing of it is where a run would look
