"""Adapters through the pipeline: a base, an adapter beside it, what both leave, and a whole model of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.integration.conftest import Small, make_base

pytest.importorskip("peft")

STEPS = "diffusion.training.steps=4"


def newest(small: Small) -> Path:
    return max(small.manifests("diffusion"), key=lambda path: path.stat().st_mtime).parent


def checkpoint(artifact: Path) -> tuple[dict[str, Any], int]:
    """What the newest checkpoint says it holds, and its bytes."""
    folder = max((artifact / "work" / "checkpoints").iterdir())
    body = json.loads(json.loads((folder / "manifest.json").read_text())["body"])
    return body, sum(path.stat().st_size for path in folder.iterdir())


def pictures(folder: Path) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png")) if path.name != "grid.png"]


def test_an_adapter_from_its_training_to_a_whole_model(small: Small) -> None:
    assert small.run("diffusion", "diffusion.training.half_lives=[8]").code == 0
    base = newest(small)
    small.draw("images/c/new.png", 99)  # a class that the base does not know
    adapting = ["run.name=adapted", f"diffusion.training.init_from={base}", "diffusion.training.lora={rank: 2}", STEPS]
    pinned = f"autoencoder.from={small.manifests('autoencoder')[0].parent}"
    said = small.run("diffusion", *adapting, pinned, "diffusion.training.learning_rate=0.1")
    assert said.code == 0, said.err
    assert "init_from, taken: backbone, class (a b)" in said.err and "init_from, new: class (c)" in said.err
    assert "warning" not in said.err
    assert f"lora: {2 * (16 + 48) + 2 * (16 + 16) + 4 * 16} parameters are trained" in said.err
    adapter = newest(small)

    body, size = checkpoint(adapter)
    names = {"conditioner.table.weight"} | {
        f"backbone.blocks.0.attention.{layer}.lora_{factor}.default.weight"
        for layer in ("qkv", "out")
        for factor in "AB"
    }
    assert set(body["shapes"]) == set(load_file(adapter / "ema.safetensors")) == names
    assert size < checkpoint(base)[1] / 2
    written = set(load_file(adapter / "adapter" / "adapter_model.safetensors"))
    assert "base_model.model.conditioner.table.weight" in written and len(written) == 5

    root = ("--root", str(small.root))
    out, merged = small.folder / "out", small.folder / "merged"
    refused = small.ldm("distil", "adapted", *root)
    assert (
        refused.code == 2
        and f"is an adapter, and a student has its teacher's whole weights; `ldm merge {adapter}" in (refused.err)
    )
    assert small.ldm("sample", str(adapter), "--out", str(out / "a"), "-n", "3", *root).code == 0
    assert small.ldm("merge", str(adapter), "-o", str(merged), *root).code == 0
    assert "adapts the weights of digest" in small.ldm("lineage", str(adapter), *root).out
    whole = (f"diffusion.training.init_from={merged}", "diffusion.training.steps=2")
    student = small.ldm("distil", "adapted", *root, *whole)
    assert student.code == 0, student.err
    assert "damaged" not in small.ldm("verify", *root).out
    other = small.run("diffusion", *adapting, "autoencoder.training.steps=5", "diffusion.prediction=eps")
    assert "trained on latents of another autoencoder (content" in other.err
    assert "trained for `prediction` velocity, here it is eps" in other.err
    refused = small.run("diffusion", f"diffusion.training.init_from={adapter}", pinned)
    assert refused.code == 2 and "is an adapter; make a whole model of it" in refused.err
    base.rename(small.folder / "away")
    gone = small.ldm("sample", str(adapter), "--out", str(out / "b"), *root)
    assert gone.code == 2 and gone.err.count("\n") == 1 and "base of this adapter" in gone.err
    assert small.ldm("verify", *root).code == 2
    assert small.ldm("sample", str(merged), "--out", str(out / "c"), "-n", "3", *root).code == 0
    assert all(np.array_equal(*pair) for pair in zip(pictures(out / "a"), pictures(out / "c"), strict=True))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["diffusion.training.lora={targets: [attention.qvk]}"], "did you mean 'attention.qkv'"),
        (["diffusion.backbone.depth=2"], "another backbone: backbone.blocks.1."),
        (["autoencoder.model.latent_channels=4"], "latents of 2 channels there, of 4 here"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_runs(small: Small, overrides: list[str], words: str) -> None:
    make_base(small.folder / "base")
    said = small.run("diffusion", f"diffusion.training.init_from={small.folder / 'base'}", *overrides)
    assert said.code == 2 and words in said.err and said.err.count("\n") == 1
    assert not small.manifests()
