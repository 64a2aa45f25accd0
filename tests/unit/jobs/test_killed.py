"""Verbs that make something of a model, killed again and again: what lies there is whole, and the same call goes on
until all is as if nothing had happened, recorded once. `ldm audit` is in tests/integration/test_audit.py."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.cli import group
from pipeline.data.latents import LatentSpace
from pipeline.generate import folder
from pipeline.generate.generator import Generator, generator
from pipeline.tracking import tracker
from tests.killed import content, goes_on
from tests.pixels import Pixels
from tests.unit.pipeline.applications import test_edit, test_features, test_probe, test_recorded, test_why
from tests.unit.pipeline.applications.test_recorded import root as root

SIDE, N = test_edit.SIDE, 160


def exact() -> Generator:
    space = LatentSpace(torch.zeros(3), torch.ones(3))
    return generator(test_edit.OPTIONS, Pixels(), test_edit.Exact(), space, torch.device("cpu"), {"batch_size": 4}, {})


A, B = "data/sad/0.png", "data/happy/1.png"
VERBS: dict[str, tuple[Callable[[], Generator], str]] = {
    "edit": (exact, f"m {A} --set class=happy --strength 0.5,1 --steps 2"),
    "inpaint": (exact, f"m {A} --mask mask.png -n 2 --steps 2"),
    "restore": (exact, f"m {A} {B} --task denoise --noise 20 --steps 2"),
    "compose": (exact, f"m {A} {B} --between 3 --steps 2"),
    "why": (lambda: test_why.MODEL, "m -n 1 --classes up --show guidance --steps 2"),
    "features": (test_features.made, "m data --levels 0.3"),
    "augment": (exact, "m data --per-class 1 --judge-steps 1 --least 0 --steps 2 --real"),
    "agreement": (
        exact,
        "m t.csv --train t.csv --columns kind --label kind --judge-steps 1 --guidance 1,2 --steps 2 -n 20",
    ),
    "probe": (exact, "f.npz --few= --seeds 1"),
}
ENDS = {"features": ".npz", "probe": ".json"}


@pytest.fixture
def place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where verbs are called: images of two classes, a mask, features; `root` has the run of their model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracker, "start", lambda *_: None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    rows = ["image,kind"]
    for label, name in enumerate(("sad", "happy")):
        Path("data", name).mkdir(parents=True)
        for i, face in enumerate(test_edit.faces(2 * label, 10)):
            Image.fromarray(face).save(f"data/{name}/{2 * i + label}.png")
            rows.append(f"data/{name}/{2 * i + label}.png,{name}")
    Path("t.csv").write_text("\n".join(rows) + "\n")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[2:5, 2:6] = 255
    Image.fromarray(mask).save("mask.png")
    monkeypatch.setattr(test_probe, "N", N)
    about = np.array(json.dumps({"model": test_recorded.MODEL}))
    test_probe.written(Path("f.npz"), pixels=np.zeros((N, 4, 4, 1), np.uint8), about=about)
    return tmp_path


@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_verb_leaves_whole_files_and_goes_on(
    verb: str, place: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, given = VERBS[verb]
    model = dataclasses.replace(make(), about=test_recorded.MODEL)
    monkeypatch.setattr(folder, "load_pretrained", lambda *_, **__: model)

    def call(where: str) -> None:
        words = ["--out", f"{where}/made{ENDS.get(verb, '')}", "--root", f"{where}/root"]
        group.main([verb, *given.split(), *words], standalone_mode=False)

    for where in ("undisturbed", "killed"):
        shutil.copytree(root, place / where / "root")
    call("undisturbed")
    want = content(place / "undisturbed")
    assert len([name for name in want if name.startswith(f"root/pipelines/{verb}-") and name.endswith(".jsonl")]) == 1
    assert goes_on(lambda: call("killed"), place / "killed", want, ("manifest.json",)) > 2
