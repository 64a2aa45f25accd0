"""A student through the pipeline: trained from its teacher, evaluated and registered beside it, refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pipeline.files import read_json
from pipeline.generate import load_pretrained
from tests.integration.conftest import Small


def newest(small: Small, stage: str) -> Path:
    return max(small.manifests(stage), key=lambda path: path.stat().st_mtime).parent


def test_a_student_of_two_steps_stands_beside_its_teacher(small: Small) -> None:
    assert small.run("diffusion", "evaluate.guidance=1.5", "diffusion.route={}").code == 0
    teacher = newest(small, "diffusion")
    distil = ("distil", "small", "--root", str(small.root), "--steps", "2", "diffusion.training.steps=4")
    said = small.ldm(*distil)
    assert said.code == 0, said.err
    assert "models:/small-few@latest-good" in said.out and "diffusion: 2 ranks" not in said.out
    student = newest(small, "diffusion")
    about = read_json(student / "model.json")
    assert about["student"] == {"guidance": 1.5, "steps": 2} and student != teacher
    recipe = json.loads((student / "manifest.json").read_text())["recipe"]
    assert recipe["distil"] == {"guidance": 1.5, "steps": 2}
    again = small.ldm(*distil)
    assert again.code == 0 and again.out.count(" cached ") == 6, again.out

    model = load_pretrained(newest(small, "register") / "model")
    assert (model.defaults["sampler"], model.defaults["steps"], model.defaults["guidance"]) == ("few", 2, 1)
    one, same = model.sample(n=4, seed=1), model.sample(n=2, seed=1)
    assert np.array_equal(one[:2], same) and not np.array_equal(one[0], one[1])
    root = ("--root", str(small.root), "--out", str(small.folder / "out"))
    assert small.ldm("sample", "small-few", "-n", "2", "--out", str(small.folder / "two"), *root[:2]).code == 0
    for run, how, words in [
        (
            "small-few",
            "--sampler=heun",
            "this model is a student that samples by few in 2 steps alone; give few, not heun",
        ),
        (
            "small-few",
            "--steps=4",
            "steps: this model is a student that samples by few in 2 steps alone; give 2, not 4",
        ),
        ("small-few", "--guidance=2", "guidance: this model is a student, which has its teacher's in its answers"),
        (
            "small",
            "--sampler=few",
            "sampler: few is for a student of few steps (`ldm distil`), which this model is not",
        ),
    ]:
        refused = small.ldm("sample", run, how, *root)
        assert refused.code == 2 and words in refused.err and refused.err.count("\n") == 1
    plain = ["run", "--config", str(small.config)]
    for words, more in [
        ("small-few: is a student already; give the run of its teacher", ["distil", "small-few", *root[:2]]),
        ("`distil` needs its teacher in `training.init_from`", [*plain, "diffusion.distil={}"]),
    ]:
        refused = small.ldm(*more)
        assert refused.code == 2 and words in refused.err, refused.err
