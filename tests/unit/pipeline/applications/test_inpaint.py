"""Inpainting by a model that knows images of one colour each: what is drawn must be the colour of what is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.applications.inpaint import first_level, inpaint, padded, smooth, windows
from pipeline.data.latents import LatentSpace
from pipeline.errors import UserError
from pipeline.generate.generator import Generator, generator
from tests.unit.pipeline.applications.test_edit import OPTIONS, Pixels

SIDE, DEVIATION, GRAIN = 8, 0.3, 0.02  # of the colours; of pixels about them


class Flat(nn.Module):
    """The velocity of images c + grain, c ~ N(0, DEVIATION^2) a colour, white grain: by the mean over all pixels."""

    def forward(self, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        alpha, sigma = (1 - t).view(-1, 1, 1, 1), t.view(-1, 1, 1, 1)
        noise = alpha**2 * GRAIN**2 + sigma**2  # variance of a pixel about alpha c
        mean, count = x.mean((2, 3), keepdim=True), x.shape[2] * x.shape[3]
        colour = DEVIATION**2 * alpha / (alpha**2 * DEVIATION**2 + noise / count) * mean
        x0 = colour + GRAIN**2 * alpha / noise * (x - alpha * colour)
        return (x - x0) / sigma


@pytest.fixture(scope="module")
def model() -> Generator:
    space = LatentSpace(torch.zeros(3), torch.ones(3))
    return generator(OPTIONS, Pixels(), Flat(), space, torch.device("cpu"), {"batch_size": 4}, {"name": "flat"})


def flat(height: int, width: int, values: tuple[int, int, int] = (60, 150, 190)) -> np.ndarray[Any, np.dtype[np.uint8]]:
    grain = np.random.Generator(np.random.Philox(0)).normal(0, 2, (height, width, 3))
    return np.rint(np.array(values) + grain).astype(np.uint8)


def hole(shape: tuple[int, int], top: int, left: int, side: int) -> np.ndarray[Any, Any]:
    mask = np.zeros(shape, np.float32)
    mask[top : top + side, left : left + side] = 1
    return mask


def test_what_is_drawn_fits_and_what_is_known_stays(model: Generator) -> None:
    image, mask = flat(SIDE, SIDE), hole((SIDE, SIDE), 3, 2, 3)
    spoilt = np.where(mask[:, :, None] == 1, np.uint8(255), image)  # what is in the hole is not looked at
    drawn = inpaint(model, spoilt, mask, n=6, steps=20)
    assert (drawn[:, mask == 0] == image[mask == 0]).all()
    assert np.abs(drawn[:, mask == 1].mean((0, 1)) - (60, 150, 190)).max() < 12  # of a deviation of 38
    assert len({one.tobytes() for one in drawn}) == 6
    assert (inpaint(model, image, mask, n=6, steps=20) == drawn).all()
    assert (inpaint(model, image, mask, n=6, steps=20, seed=1) != drawn).any()


def test_a_larger_image_is_filled_window_by_window(model: Generator) -> None:
    image, mask = flat(21, 30), hole((21, 30), 4, 5, 13)
    drawn = inpaint(model, image, mask, n=2, steps=20)
    assert drawn.shape == (2, 21, 30, 3) and (drawn[:, mask == 0] == image[mask == 0]).all()
    assert np.abs(drawn[:, mask == 1].mean((0, 1)) - (60, 150, 190)).max() < 15
    wider, around = padded(image, None, 5)
    assert wider.shape == (31, 40, 3) and around.sum() == 31 * 40 - 21 * 30
    drawn = inpaint(model, wider, around, steps=10)
    assert (drawn[0, 5:-5, 5:-5] == image).all()


def test_far_around_an_image_it_goes_on_from_what_is_known(model: Generator) -> None:
    """The upper left window, the first by place, has nothing of the image in it."""
    image, around = padded(flat(SIDE, SIDE), None, SIDE + 2)
    drawn = inpaint(model, image, around, steps=20)
    assert np.abs(drawn[0].mean((0, 1)) - (60, 150, 190)).max() < 20


def test_a_walk_begins_from_a_smooth_surface_under_noise_as_wide_as_the_hole() -> None:
    rows, columns = np.mgrid[:12, :16]
    image = np.stack([3 * rows + 5 * columns, 200 - 4 * rows, 10 * columns], axis=-1).astype(np.uint8)  # harmonic
    known = 1 - hole((12, 16), 3, 4, 6)
    spoilt = np.where(known[:, :, None] == 1, image, np.uint8(255))
    both = smooth(np.stack([spoilt, spoilt // 2]), known)
    assert np.abs(both[0] - image).max() < 1e-6 and (both[1][known == 1] == (spoilt // 2)[known == 1]).all()
    assert first_level(hole((64, 64), 8, 8, 32), 4) == pytest.approx(4.0, abs=0.1)
    assert first_level(hole((64, 64), 8, 8, 3), 4) == 1.0 and first_level(np.ones((64, 64)), 4) == 20.0


@pytest.mark.parametrize(("top", "left", "side"), [(0, 0, 3), (10, 20, 1), (0, 0, 20), (5, 3, 11), (12, 22, 8)])
def test_windows_cover_every_hole(top: int, left: int, side: int) -> None:
    mask = hole((20, 30), top, left, side)
    for y, x in windows(mask, SIDE, SIDE):
        assert 0 <= y <= 20 - SIDE and 0 <= x <= 30 - SIDE
        mask[y : y + SIDE, x : x + SIDE] = 0
    assert not mask.any()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mask": np.ones((4, 4), np.float32)}, "mask: of 4 x 4 pixels, and the image of 8 x 8"),
        ({"mask": np.zeros((8, 8), np.float32)}, "marks nothing"),
        ({"image": flat(6, 9), "mask": np.ones((6, 9), np.float32)}, "6 x 9 pixels, and this model makes 8 x 8"),
        ({"temperature": 1.5}, "temperature: 1.5 given"),
        ({"to": {"smile": "big"}}, "smile"),
        ({"steps": 0}, "steps: 0 given"),
        ({"guidance": float("nan")}, "guidance: nan given"),  # also where nothing is told, and it is not used
    ],
)
def test_what_cannot_be_is_one_line(model: Generator, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        inpaint(model, **{"image": flat(SIDE, SIDE), "mask": hole((SIDE, SIDE), 2, 2, 2), **given})


def test_no_more_is_added_than_fits() -> None:
    with pytest.raises(UserError, match="pad: 100000 makes 200008 x 200008 pixels, expected 50,000,000 at most"):
        padded(flat(SIDE, SIDE), None, 100_000)


def test_the_verb_draws_and_goes_on(model: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from jobs.inpaint import command

    monkeypatch.setattr("pipeline.generate.folder.load_pretrained", lambda *_, **__: model)
    Image.fromarray(flat(12, 10)).save(tmp_path / "a.png")
    Image.fromarray((255 * hole((12, 10), 2, 3, 4)).astype(np.uint8)).save(tmp_path / "mask.png")
    out, mask = tmp_path / "out", str(tmp_path / "mask.png")
    asked = ["m", str(tmp_path / "a.png"), "--out", str(out), "--mask", mask, "-n", "2", "--steps", "4"]
    assert CliRunner().invoke(command, asked, catch_exceptions=False).exit_code == 0
    names = ["a-0.png", "a-1.png", "asked.json", "grid.png"]
    assert sorted(file.name for file in out.iterdir()) == names
    before = {name: (out / name).read_bytes() for name in names}
    (out / "a-1.png").unlink()
    assert CliRunner().invoke(command, asked, catch_exceptions=False).exit_code == 0
    assert {name: (out / name).read_bytes() for name in names} == before
    nowhere = [*asked[:4], "--mask", str(tmp_path / "none.png")]
    with pytest.raises(UserError, match="cannot be read"):
        CliRunner().invoke(command, nowhere, catch_exceptions=False)
    with pytest.raises(UserError, match="give --mask"):
        CliRunner().invoke(command, asked[:4], catch_exceptions=False)
    Image.fromarray(np.full((5, 5), 255, np.uint8)).save(tmp_path / "small.png")
    other = ["m", str(tmp_path / "a.png"), "--out", str(tmp_path / "b"), "--mask", str(tmp_path / "small.png")]
    with pytest.raises(UserError, match="give a mask of its size"):
        CliRunner().invoke(command, other, catch_exceptions=False)
