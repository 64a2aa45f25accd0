"""Two images made one by a model whose every answer is known: images of class c are mu_c and white noise about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline.applications import compose
from pipeline.applications.compose import between, collage, look
from pipeline.data.latents import LatentSpace
from pipeline.errors import UserError
from pipeline.generate.generator import Generator, generator
from tests.unit.pipeline.applications import text_models
from tests.unit.pipeline.applications.test_edit import MEANS, OPTIONS, SIDE, VARIANCE, Exact, Pixels, apart, faces


@pytest.fixture(scope="module")
def model() -> Generator:
    space = LatentSpace(torch.zeros(3), torch.ones(3))
    return generator(OPTIONS, Pixels(), Exact(), space, torch.device("cpu"), {"batch_size": 4, "guidance": 2.0}, {})


HALF = np.repeat(np.arange(SIDE)[None] >= SIDE // 2, SIDE, 0).astype(np.float32)


def test_a_strip_begins_with_one_image_ends_with_the_other_and_is_of_the_data_between(model: Generator) -> None:
    a, b = faces(1, 2)
    made = between(model, a, b, 7, {"class": "neutral"}, steps=40)
    assert made.shape == (7, SIDE, SIDE, 3)
    assert apart(made[0], a) <= 1 and apart(made[-1], b) <= 1
    assert apart(made[3], a) > 10 and apart(made[3], b) > 10
    assert abs(made[3].std() / 127.5 / VARIANCE**0.5 - 1) < 0.15  # a mean of both would have 0.71 of the deviation


def test_an_end_that_does_not_come_back_is_told(
    model: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = faces(1, 2)
    strip = np.stack([a, b])
    assert max(compose.apart(model, a, b, strip)) < 1
    strip[1] = 255 - b
    assert compose.apart(model, a, b, strip)[0] < 1 and compose.apart(model, a, b, strip)[1] > 20
    monkeypatch.chdir(tmp_path)
    for name, image in (("a", a), ("b", b)):
        Image.fromarray(image).save(f"{name}.png")
    asked = ["a.png", "b.png", "--between", "3", "--set", "class=neutral", "--steps", "6"]
    assert "off" not in composed(model, monkeypatch, *asked).output
    monkeypatch.setattr(compose, "between", lambda *_, **__: np.stack([a, a, 255 - b]))
    Path("out").rename("before")
    said = composed(model, monkeypatch, *asked).output
    assert said.startswith("b.png: its end is ") and "a.png" not in said


def test_a_collage_keeps_both_sides_as_strength_allows_and_makes_its_border_of_the_data(model: Generator) -> None:
    a, b = faces(0, 1)[0], faces(2, 1)[0]
    pasted = np.where(HALF[:, :, None] > 0, b, a)
    little, much = (
        collage(model, a, b, HALF, {"class": "neutral"}, strength, steps=40, guidance=1.0) for strength in (0.05, 1.0)
    )
    assert np.abs(little.astype(float) - pasted).mean() < 10
    assert abs(much.mean() / 127.5 - 1 - MEANS[1]) < 0.05 and apart(much, pasted) > 40
    assert apart(collage(model, a, b, HALF, {"class": "neutral"}, 1.0, 1, steps=40, guidance=1.0), much) > 10  # a seed


def test_a_look_is_of_the_other_and_the_layout_is_kept(model: Generator) -> None:
    a, b = faces(1, 1)[0], faces(2, 1)[0]
    made = look(model, a, b, {"class": "happy"}, 0.02, steps=50, guidance=1.0)
    assert abs(made.mean() - b.mean()) < 3
    assert np.corrcoef(made.ravel(), a.ravel())[0, 1] > 0.9 > 0.5 > np.corrcoef(made.ravel(), b.ravel())[0, 1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--between", "4", "--look"], "one of --between"),
        ([], "one of --between"),
        (["--between", "4", "--strength", "0.5"], "leave it out"),
        (["--between", "4", "--guidance", "2"], "guidance"),
        (["--between", "4", "--steps", "1"], "at least 2"),
        (["--look", "--strength", "nan"], "strength: nan"),
        (["--look", "--set", "class=hapy"], "hapy"),
        (["--look", "--guidance", "inf"], "guidance: inf"),
        (["--mask", "white.png"], "white everywhere"),
        (["--mask", "a.png"], "black everywhere"),
        (["--mask", "none.png"], "cannot be read"),
    ],
)
def test_what_cannot_be_is_one_line(
    model: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, gray in (("a", 0), ("b", 90), ("white", 255)):
        Image.fromarray(np.full((SIDE, SIDE, 3), gray, np.uint8)).save(f"{name}.png")
    with pytest.raises(UserError, match=said):
        composed(model, monkeypatch, "a.png", "b.png", *given)
    assert not Path("out").exists()
    with pytest.raises(UserError, match="is not there"):
        composed(model, monkeypatch, "a.png", "c.png", "--look")


def composed(model: Generator, monkeypatch: pytest.MonkeyPatch, *given: str) -> Any:
    from jobs.compose import command

    monkeypatch.setattr("pipeline.generate.folder.load_pretrained", lambda *_, **__: model)
    return CliRunner().invoke(command, ["m", *given, "--out", "out"], catch_exceptions=False)


def test_the_verb_writes_a_strip_goes_on_and_refuses_another_call(
    model: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, face in zip("ab", faces(1, 2), strict=True):
        Image.fromarray(face).save(f"{name}.png")
    Image.fromarray((HALF * 255).astype(np.uint8)).save("mask.png")
    asked = ("a.png", "b.png", "--between", "3", "--set", "class=neutral", "--steps", "5")
    assert composed(model, monkeypatch, *asked).exit_code == 0
    names = ["asked.json", "between-0.png", "between-1.png", "between-2.png", "grid.png"]
    assert sorted(file.name for file in Path("out").iterdir()) == names
    assert Image.open("out/grid.png").size == (5 * SIDE, SIDE)
    before = {name: Path("out", name).read_bytes() for name in names}
    for name in ("between-1.png", "grid.png"):  # as if killed there
        Path("out", name).unlink()
    assert composed(model, monkeypatch, *asked).exit_code == 0
    assert {name: Path("out", name).read_bytes() for name in names} == before
    with pytest.raises(UserError, match="holds something else"):
        composed(model, monkeypatch, "a.png", "b.png", "--mask", "mask.png")
    for name in names:
        Path("out", name).unlink()
    assert composed(model, monkeypatch, "a.png", "b.png", "--mask", "mask.png").exit_code == 0
    assert sorted(file.name for file in Path("out").iterdir()) == ["asked.json", "collage.png", "grid.png"]


def test_between_two_texts_are_texts_and_the_ends_are_both(monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.compose import command

    model = text_models.model(told=False)
    ends = model.decode_texts(model.encode_texts(["a cat sat", "two dogs"]))
    strip = compose.between_texts(model, "a cat  sat", "two dogs", 5, steps=20)
    assert [strip[0], strip[-1]] == ends and len(set(strip)) > 2
    monkeypatch.setattr("pipeline.generate.folder.load_pretrained", lambda *_, **__: model)
    asked = ["m", "--between", "5", "--steps", "20", "--text", "a cat sat"]
    made = CliRunner().invoke(command, [*asked, "--text", "two dogs"], catch_exceptions=False)
    assert made.exit_code == 0 and made.output.count("\n") == 5
    for more, said in (
        ([], "--text: give it twice"),
        (["--text", ""], "of 0 tokens, expected 1 to 16"),
        (["--text", "as many as seventeen"], "of 20 tokens"),
        (["--text", "b", "--look"], "--text: is printed"),
        (["--text", "b", "--set", "class=verse"], "class"),
    ):
        with pytest.raises(UserError, match=said):
            CliRunner().invoke(command, [*asked, *more], catch_exceptions=False)


def test_of_texts_a_model_of_images_is_refused(model: Generator) -> None:
    with pytest.raises(UserError, match="this model is of images"):
        compose.between_texts(model, "a", "b", 3)
    with pytest.raises(UserError, match="models of images"):
        compose.strip_request(text_models.model(told=False), 3, None)
