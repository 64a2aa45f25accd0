"""Extractors: a classifier that learns, its determinism and digest, files that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import UserError
from pipeline.evaluation.metrics import features


def stripes(n: int, seed: int, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images of two classes: bright rows, bright columns."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    images = random.integers(0, 60, (n, size, size, 1))
    for image, label in zip(images, labels, strict=True):
        at = random.integers(size)
        image[at : at + 1] += 150 * (1 - label)
        image[:, at : at + 1] += 150 * label
    return images.astype(np.uint8), labels


def trained(steps: int = 60, seed: int = 0) -> features.Extractor:
    return features.train_classifier(*stripes(200, 0), *stripes(100, 1), classes=2, steps=steps, seed=seed)


def test_the_classifier_learns_and_reports_its_held_out_accuracy() -> None:
    extractor = trained()
    images, labels = stripes(100, 1)
    right = (extractor.classify(images) == labels).mean()
    assert right >= 0.95
    assert extractor.facts["held_out_accuracy"] == right
    assert (extractor.facts["held_out_images"], extractor.facts["train_images"]) == (100, 200)
    assert extractor.kind == "classifier"


def test_the_classifier_is_a_function_of_its_seed_and_leaves_the_global_generator() -> None:
    torch.manual_seed(5)
    first = trained(steps=3)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    torch.manual_seed(6)
    assert trained(steps=3).digest == first.digest
    assert trained(steps=3, seed=1).digest != first.digest


def test_a_saved_classifier_is_the_same_bytes_each_time_and_is_read_back(tmp_path: Path) -> None:
    extractor = trained(steps=2)
    for name in "ab":
        extractor.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again, (images, _) = features.load(tmp_path / "a"), stripes(10, 2)
    assert (again.digest, again.description, again.facts) == (extractor.digest, extractor.description, extractor.facts)
    assert np.array_equal(again(images), extractor(images))


def test_features_of_an_image_do_not_depend_on_the_others() -> None:
    extractor = trained(steps=2)
    images, _ = stripes(300, 2)
    found = extractor(images)
    assert found.shape == (300, 64)
    assert found.dtype == np.float64
    assert np.allclose(extractor(images[250:]), found[250:], atol=1e-5)


@pytest.mark.parametrize(("size", "channels"), [(8, 3), (12, 1), (100, 3)])
def test_all_sizes(size: int, channels: int) -> None:
    images = np.zeros((3, size, size, channels), np.uint8)
    assert features.random_network(images, "test")(images).shape == (3, 64)


def test_one_class_trains_no_classifier() -> None:
    images, labels = stripes(20, 0)
    with pytest.raises(ValueError, match="two classes"):
        features.train_classifier(images, labels * 0, images, labels, classes=1, steps=1, seed=0)


def test_the_random_network_names_itself_and_its_reason_and_knows_no_classes() -> None:
    images, _ = stripes(20, 0)
    extractor = features.random_network(images, "the images have no classes")
    assert extractor.kind == "random"
    assert "untrained" in extractor.description
    assert "no classes" in extractor.description
    assert extractor.digest == features.random_network(images, "again").digest
    with pytest.raises(ValueError, match="knows no classes"):
        extractor.classify(images)


def test_saved_weights_have_the_digest(tmp_path: Path) -> None:
    extractor = trained(steps=2)
    extractor.save(tmp_path / "extractor.safetensors")
    assert features.digest(load_file(tmp_path / "extractor.safetensors")) == extractor.digest


def test_digest_sees_values_names_and_shapes() -> None:
    weights = {"a": torch.zeros(2, 3), "b": torch.ones(())}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(())},
        {"a": torch.zeros(2, 3), "c": torch.ones(())},
        {"a": torch.zeros(2, 3).double(), "b": torch.ones(())},
        {"a": torch.zeros(2, 3), "b": torch.zeros(())},
    ]
    assert features.digest(weights) == features.digest(dict(reversed(weights.items())))
    assert len({features.digest(w) for w in [weights, *others]}) == 5


class Means(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean(dim=[2, 3])


class NotFeatures(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean()


def script(module: torch.nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.trace(module, torch.zeros(2, 3, 16, 16, dtype=torch.uint8)), str(path))
    return path


def test_torchscript_gets_uint8_rgb_and_its_digest_is_the_file(tmp_path: Path) -> None:
    from pipeline.files import sha256_file

    path = script(Means(), tmp_path / "means.pt")
    extractor = features.torchscript(path)
    images, _ = stripes(10, 0)
    assert np.allclose(extractor(images), images.mean((1, 2)).repeat(3, axis=1), atol=1e-3)
    assert extractor.digest == sha256_file(path)


def test_wrong_files_are_a_users_mistake(tmp_path: Path) -> None:
    images, _ = stripes(10, 0)
    with pytest.raises(UserError, match="does not exist"):
        features.torchscript(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("no module")
    with pytest.raises(UserError, match="not a TorchScript file"):
        features.torchscript(tmp_path / "text.pt")
    with pytest.raises(UserError, match="gives no features"):
        features.torchscript(script(NotFeatures(), tmp_path / "scalar.pt"))(images)
