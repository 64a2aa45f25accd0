"""`ldm fd`: statistics and images from files of others, and what is no such file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from jobs.fd import command
from pipeline.applications import reference
from pipeline.errors import UserError
from pipeline.evaluation.metrics import frechet


class Means:
    """Features of an image: the means of its quarters, by colour: 12 numbers."""

    description = "means of quarters"

    def __call__(self, images: Any) -> Any:
        n, height, width, channels = images.shape
        quarters = images.reshape(n, 2, height // 2, 2, width // 2, channels).mean((2, 4))
        return quarters.reshape(n, -1).astype(np.float64)


def drawn(seed: int, n: int = 60, side: int = 8) -> Any:
    return np.random.default_rng(seed).integers(0, 200 + 20 * seed, (n, side, side, 3)).astype(np.uint8)


def saved(folder: Path, images: Any) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


def test_folders_batches_and_statistics_of_the_same_images_give_one_distance(tmp_path: Path) -> None:
    first, second = drawn(0), drawn(1, 70)
    wanted = frechet.distance(Means()(first), Means()(second))
    ours, theirs = saved(tmp_path / "ours", first), saved(tmp_path / "theirs", second)
    np.savez(tmp_path / "batch.npz", arr_0=second, arr_1=np.arange(70))  # as ADM writes samples
    found = reference.distance(ours, theirs, Means(), tmp_path / "ours.npz")
    assert found["distance"] == pytest.approx(wanted, rel=1e-9) and found["reference_images"] == 70
    assert reference.distance(ours, tmp_path / "batch.npz", Means())["distance"] == pytest.approx(wanted, rel=1e-9)
    assert reference.distance(theirs, tmp_path / "ours.npz", Means())["distance"] == pytest.approx(wanted, rel=1e-9)
    assert sorted(np.load(tmp_path / "ours.npz")) == ["mu", "sigma"]


def test_images_of_unlike_sizes_are_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "some", drawn(0, 3))
    Image.fromarray(drawn(0, 1, 16)[0]).save(folder / "001b.png")
    assert reference.of_images(folder, Means()).images == 4


def test_statistics_that_lack_rank_are_compared_too() -> None:
    first, second = (Means()(drawn(seed, 7)) for seed in (0, 1))  # 7 images, 12 features
    given = [part for f in (first, second) for part in (f.mean(0), np.cov(f, rowvar=False))]
    assert frechet.of_statistics(*given) == pytest.approx(frechet.fast_distance(first, second), rel=1e-6)
    assert frechet.of_statistics(*given[:2], *given[:2]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 4))}, r"sigma float64\(3, 4\); expected real numbers \[d\]"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "statistics of 3 features, and the extractor gives 12"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "mu or sigma is not finite"),
        ({"mu": np.zeros(3), "sigma": np.array([["a"] * 3] * 3)}, "expected real numbers"),
        ({"mu": np.zeros(3), "sigma": -np.eye(3)}, "sigma is no covariance"),
        ({"mu": np.zeros(3), "sigma": np.triu(np.ones((3, 3)))}, "sigma is no covariance"),
        ({"mu": np.zeros(12), "sigma": np.eye(12) + 3 * np.eye(12)[::-1]}, "sigma is no covariance"),  # variances of -2
        ({"mu": np.zeros(12), "sigma": 1j * np.eye(12)}, "expected real numbers"),
        ({"mu": np.full(12, 1e200), "sigma": np.eye(12)}, "no distance can be computed, its numbers are too large"),
        ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, r"arr_0 is uint8\(0, 8, 8, 3\)"),
        ({"x": np.zeros(3)}, "holds x; expected mu and sigma, or images as arr_0"),
        ({"arr_0": np.zeros((4, 8, 8, 3))}, r"arr_0 is float64\(4, 8, 8, 3\); expected uint8"),
        ({"mu": np.array([{}]), "sigma": np.eye(1)}, "not a readable .npz"),  # a pickle is not loaded
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    ours = saved(tmp_path / "ours", drawn(0, 3))
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(UserError, match=message):
        reference.distance(ours, tmp_path / "r.npz", Means())


class Counted(Means):
    """Tells how many images it has seen; of weights that are not numbers, where they are asked for."""

    def __init__(self, scale: float = 1.0) -> None:
        self.seen, self.scale = 0, scale

    def __call__(self, images: Any) -> Any:
        self.seen += len(images)
        return self.scale * super().__call__(images)


def test_what_cannot_be_is_told_before_features_are_made(tmp_path: Path) -> None:
    ours, extractor = saved(tmp_path / "ours", drawn(0, 9)), Counted()
    np.savez(tmp_path / "r.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(UserError, match="statistics of 3 features"):
        reference.distance(ours, tmp_path / "r.npz", extractor)
    with pytest.raises(UserError, match=r"no\.npz: does not exist; give a folder of images or an \.npz"):
        reference.distance(ours, tmp_path / "no.npz", extractor)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):  # told in a line by the command line
        reference.distance(ours, ours, extractor, tmp_path / "file" / "our.npz")
    assert extractor.seen == 1  # one, for the width
    with pytest.raises(UserError, match="ours: features are not finite; fetch the extractor's weights"):
        reference.distance(ours, ours, Counted(np.nan))


def test_statistics_in_the_place_of_images_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", mu=np.zeros(12), sigma=np.eye(12))
    with pytest.raises(UserError, match="holds statistics, and images are wanted; give IMAGES first, then REFERENCE"):
        reference.distance(tmp_path / "r.npz", saved(tmp_path / "ours", drawn(0, 3)), Means())


def test_the_command_says_what_lacks(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path), "r.npz", "--weights", str(tmp_path / "w.pth")])
    assert isinstance(result.exception, UserError) and "w.pth does not exist" in str(result.exception)
