"""Inception on weights drawn here: layers, resize and digest. The published weights are not at hand in a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import UserError
from pipeline.evaluation.metrics import features, inception
from pipeline.files import sha256_file


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = inception.Inception()
        for name, value in network.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3)).astype(np.uint8)


def test_the_layers_are_those_of_the_published_network(weights: Path) -> None:
    """94 convolutions; torchvision's, without its side branch, has 23,834,568 parameters with 1,000 classes."""
    network = inception.load(weights)
    assert sum(isinstance(module, torch.nn.Conv2d) for module in network.modules()) == 94
    assert sum(value.numel() for value in network.parameters()) == 23_834_568 + 8 * 2049
    names = set(network.state_dict())
    for name in ("Conv2d_1a_3x3.conv.weight", "Mixed_6e.branch7x7dbl_5.bn.running_var", "fc.bias"):
        assert name in names
    assert network.Mixed_7c.largest and not network.Mixed_7b.largest


def test_features_of_gray_and_colour_and_the_digest(weights: Path, images: np.ndarray) -> None:
    digest = sha256_file(weights)
    extractor = features.inception(weights, digest[:8])
    found = extractor(images)
    assert found.shape == (2, 2048) and np.isfinite(found).all()
    gray = images[..., :1]
    assert np.allclose(extractor(gray), extractor(gray.repeat(3, axis=3)), atol=1e-5)
    assert extractor.digest != digest  # the resize is part of what makes figures comparable
    assert extractor.facts == {"weights": digest, "published": False}
    assert not np.allclose(found[0], found[1])


def test_images_are_enlarged_as_pillow_does_in_floating_point(images: np.ndarray) -> None:
    for side in (20, 400):  # enlarged, and made smaller with antialiasing
        image = np.random.default_rng(side).integers(0, 256, (side, side)).astype(np.uint8)
        own = inception.enlarge(torch.from_numpy(image)[None, None])[0]
        size = (inception.SIDE, inception.SIDE)
        theirs = Image.fromarray(image.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        assert torch.equal(own[0], own[2])
        assert np.abs(own[0].numpy() - np.asarray(theirs).clip(0, 255)).max() < 0.01
    same = torch.randint(0, 256, (1, 3, inception.SIDE, inception.SIDE), dtype=torch.uint8)
    assert torch.equal(inception.enlarge(same), same.float())


def test_equals_torch_fidelity_where_it_is_installed(weights: Path) -> None:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torch-fidelity cannot be imported ({error})")
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
    images = torch.randint(0, 256, (2, 3, inception.SIDE, inception.SIDE), dtype=torch.uint8)  # neither one resizes
    assert torch.allclose(inception.load(weights)(images), theirs(images)[0], atol=1e-5)


def test_other_files_are_a_users_mistake(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        features.inception(tmp_path / "missing.pth")
    with pytest.raises(UserError, match=r"does not begin with 6726825d.*evaluate\.extractor\.digest"):
        features.inception(weights)
    other = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, other)
    with pytest.raises(UserError, match="weights of another network"):
        inception.load(other)
    torch.save({"a": Path("/")}, other)  # a pickle of more than tensors is not run
    with pytest.raises(UserError, match="not a file of weights"):
        inception.load(other)
    other.write_text("text")
    with pytest.raises(UserError, match="not a file of weights"):
        inception.load(other)


def test_pytorch_fid_s_rule_takes_two_neighbours_a_side_and_no_more() -> None:
    for side in (20, 400):
        image = np.random.default_rng(side).integers(0, 256, (side, side)).astype(np.uint8)
        at = ((np.arange(inception.SIDE) + 0.5) * side / inception.SIDE - 0.5).clip(0, side - 1)
        low, share = np.floor(at).astype(int), at - np.floor(at)
        high = (low + 1).clip(max=side - 1)
        rows = image[low] * (1 - share)[:, None] + image[high] * share[:, None]
        wanted = rows[:, low] * (1 - share) + rows[:, high] * share
        own = inception.prepared(torch.from_numpy(image)[None, None], "pytorch-fid")[0, 0].numpy()
        assert np.abs(own - (2 * wanted / 255 - 1)).max() < 1e-4


def test_the_rule_is_part_of_the_features_identity(weights: Path, images: np.ndarray) -> None:
    digest = sha256_file(weights)
    clean, other = (features.inception(weights, digest, rule) for rule in ("clean-fid", "pytorch-fid"))
    assert clean.digest != other.digest and not np.allclose(clean(images), other(images), rtol=1e-6)
