"""Restoration by a model that knows images of one colour each, with little grain: what is left must be the colour."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from models.diffusion import operators
from pipeline.applications import given_images
from pipeline.applications.jpeg_tables import quality_of, tables, turn_of, turned
from pipeline.applications.restore import blended, cut, restore, starts, wrong
from pipeline.data.latents import LatentSpace
from pipeline.errors import UserError
from pipeline.generate.generator import Generator, generator
from tests.unit.pipeline.applications.test_edit import OPTIONS, Pixels
from tests.unit.pipeline.applications.test_inpaint import Flat, flat

SIDE, FEW = 16, {"steps": 6}
SIZED: dict[str, Any] = {**OPTIONS, "latent": {"channels": 3, "size": SIDE}}


@pytest.fixture(scope="module")
def model() -> Generator:
    space = LatentSpace(torch.zeros(3), torch.ones(3))
    return generator(SIZED, Pixels(), Flat(), space, torch.device("cpu"), {"batch_size": 4}, {"name": "flat"})


def noisy(images: Any, sigma: float) -> np.ndarray[Any, np.dtype[np.uint8]]:
    noise = np.random.Generator(np.random.Philox(1)).normal(0, sigma, images.shape)
    return np.rint(images + noise).clip(0, 255).astype(np.uint8)


def error(found: Any, images: Any) -> float:
    return float(np.sqrt(((found.astype(float) - images) ** 2).mean()))


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (21, 38)])
def test_noise_goes_and_the_image_stays_at_its_size(model: Generator, shape: tuple[int, int]) -> None:
    clean = np.stack([flat(*shape), flat(*shape, (200, 90, 120))])
    found = restore(model, noisy(clean, 20), "denoise", noise=20, **FEW)
    assert found.shape == clean.shape and error(found, clean) < 10
    again = restore(model, noisy(clean, 20), "denoise", noise=20, **FEW)
    assert (again == found).all()
    alone = restore(model, noisy(clean, 20)[1:], "denoise", noise=20, first=1, **FEW)
    assert np.abs(alone[0].astype(int) - found[1]).max() <= 1  # whoever else is restored
    assert error(restore(model, noisy(clean, 20), "denoise", **FEW), clean) < 10  # of noise that is estimated


def test_what_is_measured_holds_for_what_comes_out(model: Generator) -> None:
    ramp = np.linspace(60, 190, 2 * SIDE)[:, None, None] + np.zeros((1, 40, 3))  # no image of the model's
    clean = np.rint(ramp).astype(np.uint8)[None]
    small = np.asarray(Image.fromarray(clean[0]).resize((20, SIDE), Image.Resampling.BICUBIC))[None]
    larger = restore(model, small, "superres", factor=2, **FEW)
    assert larger.shape == clean.shape
    back = np.asarray(Image.fromarray(larger[0]).resize((20, SIDE), Image.Resampling.BICUBIC))
    assert np.abs(back.astype(int) - small[0]).max() <= 2
    luma = np.asarray(Image.fromarray(clean[0]).convert("L"))[None, :, :, None]
    coloured = restore(model, luma, "colorize", **FEW)
    assert coloured.shape == clean.shape
    assert np.abs(np.asarray(Image.fromarray(coloured[0]).convert("L")).astype(int) - luma[0, :, :, 0]).max() <= 2


def test_blur_is_taken_off_and_a_jpeg_file_stays_what_it_was(model: Generator) -> None:
    clean = np.full((1, SIDE, 24, 3), 60, np.uint8)
    clean[:, :, 12:] = 180
    blurred = np.rint(ndimage.gaussian_filter(clean[0].astype(float), (1, 1, 0), mode="nearest")).astype(np.uint8)[None]
    assert error(restore(model, blurred, "deblur", blur=1, **FEW), clean) < 0.7 * error(blurred, clean)
    file = io.BytesIO()
    clean = flat(SIDE, 24)[None]
    Image.fromarray(clean[0]).save(file, "JPEG", quality=8)
    blocks = np.asarray(Image.open(file))[None]
    found = restore(model, blocks, "jpeg", quality=8, **FEW)
    steps = [torch.from_numpy(table) for table in tables(8)]
    a = operators.jpeg(*steps, (3, 16, 16), 1.0, 0.0)  # in steps
    apart = [
        a.forward(torch.from_numpy(x[:, :, :16].transpose(0, 3, 1, 2).astype(np.float32))) for x in (found, blocks)
    ]
    assert found.shape == clean.shape and float((apart[0] - apart[1]).abs().max()) < 0.6
    assert error(found, clean) < 10


def test_windows_cover_and_come_together_again() -> None:
    for length, side, unit in ((16, 16, 4), (200, 64, 4), (304, 64, 16), (68, 64, 4), (20, 16, 1)):
        begins = starts(length, side, unit)
        assert begins[0] == 0 and begins[-1] == length - side and all(at % unit == 0 for at in begins)
        assert all(b - a < side for a, b in itertools.pairwise(begins))
    x = torch.randn(2, 3, 10, 14, generator=torch.Generator().manual_seed(0))
    places = [(top, left) for top in starts(20, 16, 2) for left in starts(28, 16, 2)]
    parts = cut(x, places, (16, 16), 2)
    assert parts.shape == (2 * len(places), 3, 8, 8)
    torch.testing.assert_close(blended(parts, places, (20, 28), 2), x)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": "sharpen"}, "task: 'sharpen' given, expected one of denoise"),
        ({"noise": float("nan")}, "noise: nan given"),
        ({"noise": 0.0}, "noise: 0.0 given"),
        ({"blur": 2.0}, "blur: denoise is not told it"),
        ({"task": "deblur"}, "blur: deblur must know it"),
        ({"task": "deblur", "blur": 40.0}, "blur: 40.0 given"),
        ({"task": "superres", "factor": 3}, "factor: 3, which must divide"),
        ({"task": "superres", "factor": 1}, "factor: 1 given"),
        ({"task": "superres", "factor": 2.5}, "factor: 2.5 given, expected a whole number from 2 to 16"),
        ({"task": "jpeg", "quality": 0}, "quality: 0 given"),
        ({"task": "colorize"}, "of 3 channels, expected 1"),
        ({"images": flat(12, 30)[None]}, "12 x 30 pixels would come out, and this model makes 16 x 16"),
        ({"images": np.zeros((1, 500, 500, 3), np.uint8), "task": "superres", "factor": 16}, "8000 x 8000 pixels"),
        ({"to": {"smile": "big"}}, "smile"),
        ({"steps": 0}, "steps: 0 given"),
        ({"guidance": float("nan")}, "guidance: nan given"),  # also where nothing is told, and it is not used
    ],
)
def test_what_cannot_be_is_one_line(model: Generator, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        restore(model, **{"images": flat(SIDE, SIDE)[None], "task": "denoise", **given})


def test_a_jpeg_file_says_its_quality(tmp_path: Path) -> None:
    for quality in (10, 50, 93):
        Image.fromarray(flat(20, 20)).save(tmp_path / "a.jpg", quality=quality)
        assert quality_of(tmp_path / "a.jpg") == quality
    assert tables(50)[0][0, 0] == 16 and tables(50)[1][0, 0] == 17  # as ITU-T T.81 has them
    Image.fromarray(flat(20, 20)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    for name, said in (("a.png", "give --quality"), ("b.jpg", "cannot be read")):
        with pytest.raises(UserError, match=said):
            quality_of(tmp_path / name)


def test_the_verb_restores_and_goes_on(model: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from jobs.restore import command

    monkeypatch.setattr("pipeline.generate.folder.load_pretrained", lambda *_, **__: model)
    Image.fromarray(flat(18, 20)).save(tmp_path / "a.jpg", quality=20)
    Image.fromarray(flat(SIDE, SIDE)).save(tmp_path / "b.jpg", quality=40)
    out = tmp_path / "out"
    asked = ["m", str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg"), "--out", str(out), "--task", "jpeg", "--steps", "2"]
    assert CliRunner().invoke(command, asked, catch_exceptions=False).exit_code == 0
    names = ["a.png", "asked.json", "b.png", "grid.png"]
    assert sorted(file.name for file in out.iterdir()) == names
    assert Image.open(out / "a.png").size == (20, 18) and Image.open(out / "grid.png").size == (40, 36)
    before = {name: (out / name).read_bytes() for name in names}
    for name in ("b.png", "grid.png"):  # as if killed there
        (out / name).unlink()
    assert CliRunner().invoke(command, asked, catch_exceptions=False).exit_code == 0
    assert {name: (out / name).read_bytes() for name in names} == before
    with pytest.raises(UserError, match="holds something else"):
        CliRunner().invoke(command, [*asked, "--quality", "30"], catch_exceptions=False)
    Image.fromarray(flat(SIDE, 9)).save(tmp_path / "small.png")
    wrong = ["m", str(tmp_path), "--out", str(tmp_path / "b"), "--task", "denoise"]
    with pytest.raises(UserError, match="give a larger one"):
        CliRunner().invoke(command, wrong, catch_exceptions=False)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("lost", [0.05, 0.2])
def test_measured_pixels_show_how_much_is_wrong(lost: float) -> None:
    draw = torch.Generator().manual_seed(1)
    clean = torch.rand(2, 3, 64, 64, generator=draw) * 2 - 1
    x, noise = clean + lost * torch.randn(clean.shape, generator=draw), 0.1
    rows = torch.stack([operators.gaussian(64, 1.0)])
    for operator in (operators.masked(torch.ones(()), noise), operators.gray(noise),
                     operators.separable(rows, rows, noise)):  # fmt: skip
        seen = operator.forward(clean)
        y = seen + noise * torch.randn(seen.shape, generator=draw)
        assert wrong(operator, y, x).shape == (2, 1, 1, 1)
        assert (wrong(operator, y, x) / lost**2).sub(1).abs().max() < (0.35 if lost > noise else 1)


def test_blocks_lie_as_in_the_file_whatever_way_its_image_is_turned(
    model: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from jobs.restore import command

    monkeypatch.setattr("pipeline.generate.folder.load_pretrained", lambda *_, **__: model)
    noise = np.random.Generator(np.random.Philox(0)).integers(0, 256, (18, 20, 3), np.uint8)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        Image.fromarray(noise).save(tmp_path / f"{turn}.jpg", quality=20, exif=exif)
        stored = np.asarray(Image.open(tmp_path / f"{turn}.jpg"))
        assert turn_of(tmp_path / f"{turn}.jpg") == turn
        upright = given_images.read(tmp_path / f"{turn}.jpg", 3, None)
        assert (turned(upright, turn, upright=False) == stored).all()
        assert (turned(stored, turn, upright=True) == upright).all()
    made = []
    for turn in (1, 6):
        asked = ["m", str(tmp_path / f"{turn}.jpg"), "--out", str(tmp_path / f"out{turn}"), "--task", "jpeg"]
        assert CliRunner().invoke(command, [*asked, "--steps", "1"], catch_exceptions=False).exit_code == 0
        made.append(np.asarray(Image.open(tmp_path / f"out{turn}" / f"{turn}.png")))
    assert (made[1] == np.rot90(made[0], -1)).all()
