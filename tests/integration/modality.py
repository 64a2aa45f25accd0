"""What each modality is held to alike: an exact resume of its trained stages, and one line from verbs of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.artifacts import Artifact
from pipeline.files import sha256_file
from tests.integration.conftest import Small


def is_equal_bit_for_bit_once_stopped(small: Small, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained stage that dies in a step behind the checkpoint of step 2, and goes on, beside one that does not."""
    from pipeline.training import loop

    whole, parts = small.folder / "whole", small.folder / "parts"
    assert small.run(stage, f"run.root={whole}").code == 0
    step, calls = loop.Engine.step, 0

    def dies(self, *arguments, **more):
        nonlocal calls
        calls += 1
        if calls == (3 if stage == "autoencoder" else 7):  # diffusion: the autoencoder's four steps come first
            raise KeyboardInterrupt
        return step(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Engine, "step", dies)
        assert small.run(stage, f"run.root={parts}").code != 0
    assert small.run(stage, f"run.root={parts}").code == 0
    one, two = (
        Artifact.load(next(Path(root).glob(f"artifacts/{stage}/*/manifest.json")).parent) for root in (whole, parts)
    )
    assert one.fingerprint == two.fingerprint
    for name in ("ema.safetensors", "live.safetensors"):
        assert sha256_file(one.path / name) == sha256_file(two.path / name)


def is_refused_by_verbs_of_images(small: Small, model: str, what: str) -> None:
    """what: that the model is of, in the line."""
    picture = small.folder / "a.png"
    small.draw("a.png", 0)
    for verb, *more in (
        ("inpaint", model, str(picture), "--pad", "2"),
        ("restore", model, str(picture), "--task", "denoise"),
        ("edit", model, str(picture), "--set", "a=1"),
        ("compose", model, str(picture), str(picture), "--between", "3"),
        ("features", model, str(small.folder / "images")),
        ("augment", model, str(small.folder / "images")),
        ("audit", model, "--root", str(small.root)),
        ("export", model),
    ):
        said = small.ldm(verb, *more, "--out", str(small.folder / verb))
        assert said.code == 2 and f"is for models of images, and this one is of {what}" in said.err, said.err
        assert len(said.err.strip().splitlines()) == 1
