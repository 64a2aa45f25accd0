"""An audit of two models whose every answer is known: one that has learnt its training images by heart, one that knows
the distribution that they were drawn from. No autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from pipeline.data.latents import LatentSpace
from pipeline.errors import UserError
from pipeline.evaluation import attack, audit_report
from pipeline.evaluation.audit import Part, Subject, audit
from pipeline.evaluation.metrics.features import Extractor
from pipeline.files import read_json
from pipeline.generate.generator import Generator, generator
from tests.pixels import Pixels

SIDE, KNOWN = 8, 60
OPTIONS: dict[str, Any] = {
    "latent": {"channels": 3, "size": SIDE},
    "condition": {"kind": "none"},
    "classes": [],
    "path": {"kind": "rectified_flow", "schedule": "cosine"},
    "prediction": "velocity",
}


def pictures(n: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    noise = np.random.Generator(np.random.Philox(seed)).normal(size=(n, SIDE, SIDE, 3))
    smooth = gaussian_filter(noise, (0, 1, 1, 0), mode="wrap")
    return np.clip(127 + 400 * smooth, 0, 255).astype(np.uint8)


class Answer(nn.Module):
    """The velocity at x_t = (1 - t) x0 + t eps of a denoiser, which is given the level and x / alpha."""

    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        t = t.view(-1, 1, 1, 1)
        level = (t / (1 - t).clamp(min=1e-4)).flatten(1)
        x0 = self.denoise((x / (1 - t).clamp(min=1e-4)).flatten(1), level).reshape(x.shape)
        return (x - x0) / t.clamp(min=1e-4)  # eps - x0


class ByHeart(Answer):
    """The best denoiser of the training images alone: their mean, weighted by how likely each is to be below."""

    def __init__(self, train: Tensor) -> None:
        super().__init__()
        self.train_points = train.flatten(1)

    def denoise(self, y: Tensor, level: Tensor) -> Tensor:
        weights = (-torch.cdist(y, self.train_points).square() / (2 * level.square())).softmax(1)
        return weights @ self.train_points


class Distribution(Answer):
    """The best denoiser of the Gaussian with the mean and covariance of many other images."""

    def __init__(self, others: Tensor) -> None:
        super().__init__()
        points = others.flatten(1).double()
        self.mean, (values, self.turn) = points.mean(0).float(), torch.linalg.eigh(points.T.cov())
        self.values, self.turn = values.clamp(min=0).float(), self.turn.float()

    def denoise(self, y: Tensor, level: Tensor) -> Tensor:
        along = (y - self.mean) @ self.turn
        return self.mean + along * (self.values / (self.values + level.square())) @ self.turn.T


def latents(images: Any) -> Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)) / 127.5 - 1


def model_of(network: nn.Module, name: str) -> Generator:
    space = LatentSpace(torch.zeros(3), torch.ones(3))
    return generator(OPTIONS, Pixels(), network, space, torch.device("cpu"), {"batch_size": 16}, {"name": name})


TRAIN, HELD_OUT = pictures(KNOWN, 0), pictures(KNOWN, 1)
BY_HEART = model_of(ByHeart(latents(TRAIN)), "by heart")
SOUND = model_of(Distribution(latents(pictures(4000, 2))), "sound")
EXTRACTOR = Extractor("random", "0" * 64, "pixels", lambda x: x.flatten(1).float())


def subject_of(model: Generator, held_out: Any = HELD_OUT) -> Subject:
    none: dict[str, Any] = {"classes": []}
    members, others = (Part(images, none, lambda i: f"train/{i}") for images in (TRAIN, held_out))
    return Subject(model, TRAIN, members, others, EXTRACTOR, len(TRAIN))


def report_of(model: Generator, parts: Path, held_out: Any = HELD_OUT, **more: Any) -> dict[str, Any]:
    return audit(subject_of(model, held_out), model.request(None, 40, 0, steps=12), parts, **more)[0]


def test_what_was_learnt_by_heart_is_caught(tmp_path: Path) -> None:
    report, picture = audit(subject_of(BY_HEART), BY_HEART.request(None, 40, 0, steps=12), tmp_path)
    figures = audit_report.figures(report)
    assert figures["membership_auc"] > 0.95 and figures["membership_tpr"] > 0.9
    assert figures["copies"] > 0.9 and figures["copies_features"] > 0.9
    halves = report["membership"]["halves"]
    assert halves["low"] < 0.5 < halves["high"]
    first = report["exposed"]["samples"][0]
    assert first["copy"] and first["of"].startswith("train/") and first["distance"] < 5
    assert report["exposed"]["train"][0]["held_out_above"] == 0 and picture.shape == (8 * SIDE, 8 * SIDE, 3)
    with pytest.raises(UserError, match=r"copies is 1, and `register.gate.copies` allows 0.01; .*report.md") as said:
        audit_report.refuse(report, {"copies": 0.01, "membership_auc": None}, tmp_path / "report.md")
    assert "\n" not in str(said.value) and "membership" not in str(said.value)
    audit_report.refuse(report, {"copies": 1.0, "membership_auc": None}, tmp_path)


def test_a_sound_model_passes(tmp_path: Path) -> None:
    report = report_of(SOUND, tmp_path)
    own = report["membership"]
    assert own["low"] < 0.5 < own["high"] and own["halves"]["low"] < 0.5 < own["halves"]["high"]
    assert all(row["low"] < 0.55 and row["high"] > 0.45 for row in own["levels"])
    assert report["copies"]["pixels"]["share"] == 0 and own["tpr"] < 0.1
    audit_report.refuse(report, {"membership_auc": 0.65, "copies": 0.01}, tmp_path)


def test_held_out_images_that_are_in_training_hide_nothing(tmp_path: Path) -> None:
    report = report_of(BY_HEART, tmp_path, np.concatenate([TRAIN[:6], HELD_OUT[6:]]))
    assert report["images"]["held_out_in_train"] == 6
    assert report["membership"]["tpr"] > 0.9 and report["copies"]["pixels"]["share"] > 0.9


def test_a_reference_model_takes_out_how_hard_an_image_is(tmp_path: Path) -> None:
    hard = np.clip(HELD_OUT.astype(int) // 4 + 95, 0, 255).astype(np.uint8)  # of little contrast: easy for any model
    part = Part(TRAIN, {"classes": []}, str), Part(hard, {"classes": []}, str)
    plain = report_of(SOUND, tmp_path / "plain", hard)["membership"]
    beside = report_of(SOUND, tmp_path / "beside", hard, reference=(SOUND, *part))["membership"]
    assert plain["auc"] < 0.1 and beside["auc"] == 0.5 and beside["calibrated"]


def test_errors_are_of_the_image_and_its_number_alone() -> None:
    x0, loss = latents(HELD_OUT), attack.loss_of(BY_HEART, {"classes": []})
    together = attack.errors(loss, x0, 0, batch_size=25)
    assert np.allclose(attack.errors(loss, x0[:10], 0, batch_size=4), together[:10], atol=1e-4)
    assert not np.allclose(attack.errors(loss, x0[:10], 1), together[:10], atol=1e-2)


def test_a_killed_audit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = report_of(SOUND, tmp_path / "whole")
    calls: list[int] = []
    images = Generator.images

    def dies(self: Generator, request: Any, first: int = 0) -> Any:
        calls.append(first)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return images(self, request, first)

    monkeypatch.setattr(Generator, "images", dies)
    with pytest.raises(KeyboardInterrupt):
        report_of(SOUND, tmp_path / "parts")
    left = sorted(file.name for file in (tmp_path / "parts").iterdir())
    assert left == ["errors.npz", "heldout-pixels.npz", "samples-000000.npy"]
    monkeypatch.setattr("pipeline.evaluation.attack.errors", None)  # is not called again
    assert report_of(SOUND, tmp_path / "parts") == whole
    assert calls == [0, 16, 16, 32]
    (tmp_path / "parts" / "samples-000016.npy").write_bytes(b"half")
    with pytest.raises(UserError, match=r"samples-000016\.npy: is damaged; remove it"):
        report_of(SOUND, tmp_path / "parts")


def test_too_few_images_are_refused_and_the_files_are_whole(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="audit: 5 held-out images, 20 at least"):
        report_of(SOUND, tmp_path, HELD_OUT[:5])
    with pytest.raises(UserError, match="all but 0 are training images again"):
        near = np.concatenate([TRAIN[:30], np.zeros_like(HELD_OUT[:0])])
        report_of(SOUND, tmp_path, near)


def test_what_goes_with_a_model_names_no_image(tmp_path: Path) -> None:
    report = report_of(BY_HEART, tmp_path / "parts")
    audit_report.write(tmp_path / "own", report, np.zeros((4, 4, 3), np.uint8))
    audit_report.write(tmp_path / "model", audit_report.public(report), None)
    assert sorted(file.name for file in (tmp_path / "own").iterdir()) == sorted(audit_report.FILES)
    assert "train/" in (tmp_path / "own" / "report.md").read_text()
    for file in (tmp_path / "model").iterdir():
        assert "train/" not in file.read_text()
    assert read_json(tmp_path / "model" / "report.json")["copies"] == report["copies"]
