"""Edits by a model whose every answer is known: images of class c are mu_c and white noise about it, no autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.applications.edit import edit
from pipeline.applications.given_images import files_of, read, read_mask
from pipeline.data.latents import LatentSpace
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.generate.generator import Generator, generator
from tests.pixels import Pixels

MEANS, VARIANCE, SIDE = (-0.4, 0.0, 0.4), 0.01, 8
OPTIONS: dict[str, Any] = {
    "latent": {"channels": 3, "size": SIDE},
    "condition": {"kind": "class", "drop": 0.1},
    "classes": ["sad", "neutral", "happy"],
    "path": {"kind": "rectified_flow", "schedule": "cosine"},
    "prediction": "velocity",
}


class Exact(nn.Module):
    """The velocity of x_t = (1 - t) x0 + t eps for x0 ~ N(mu_c, VARIANCE); the null class is the middle one."""

    def forward(self, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        mean = torch.tensor([*MEANS, 0.0])[condition["class"]].view(-1, 1, 1, 1)
        alpha, sigma = (1 - t).view(-1, 1, 1, 1), t.view(-1, 1, 1, 1)
        x0 = mean + VARIANCE * alpha / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * mean)
        return (x - x0) / sigma  # eps - x0


@pytest.fixture(scope="module")
def model() -> Generator:
    space = LatentSpace(torch.zeros(3), torch.ones(3))
    return generator(OPTIONS, Pixels(), Exact(), space, torch.device("cpu"), {"batch_size": 4}, {"name": "exact"})


def faces(label: int, n: int = 6) -> np.ndarray[Any, np.dtype[np.uint8]]:
    draw = np.random.Generator(np.random.Philox(label))
    values = MEANS[label] + VARIANCE**0.5 * draw.standard_normal((n, SIDE, SIDE, 3))
    return np.rint((values + 1) * 127.5).astype(np.uint8)


def apart(a: Any, b: Any) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_inversion_changes_what_is_asked_and_nothing_else(model: Generator) -> None:
    sad, shift = faces(0), (MEANS[2] - MEANS[0]) * 127.5
    made = edit(model, sad, {"class": "happy"}, {"class": "sad"}, strength=1.0, steps=40)
    assert np.abs(made.astype(float) - sad - shift).max() < 2.5  # gray levels: each image keeps its own noise
    assert apart(edit(model, sad, {"class": "sad"}, {"class": "sad"}, strength=1.0, steps=40), sad) <= 1
    partly = edit(model, sad, {"class": "happy"}, {"class": "sad"}, strength=0.5, steps=40)
    assert 5 < (partly.astype(float) - sad).mean() < shift - 5


def test_guidance_leads_away_from_what_was(model: Generator) -> None:
    sad = faces(0)
    once, further = (
        edit(model, sad, {"class": "neutral"}, {"class": "sad"}, strength=1.0, steps=20, guidance=scale)
        for scale in (1.0, 1.5)
    )
    assert (further.astype(float) - once).mean() > 5


def test_fresh_noise_draws_of_what_is_asked(model: Generator) -> None:
    made = edit(model, faces(0), {"class": "happy"}, strength=1.0, method="noise", steps=40, guidance=1.0)
    assert abs(made.mean() / 127.5 - 1 - MEANS[2]) < 0.02
    assert apart(made[0], made[1]) > 20  # noise of its own each
    alone = edit(model, faces(0)[:5], {"class": "happy"}, strength=1.0, method="noise", steps=40, guidance=1.0)
    assert apart(alone, made[:5]) <= 1  # whoever else is edited


def test_outside_the_mask_every_pixel_stays(model: Generator) -> None:
    sad, mask = faces(0), np.zeros((SIDE, SIDE), np.float32)
    mask[2:5, 1:6] = 1
    for method in ("inversion", "noise"):
        made = edit(model, sad, {"class": "happy"}, {"class": "sad"}, 1.0, method, mask, steps=20, guidance=1.0)
        assert apart(made[:, mask == 0], sad[:, mask == 0]) == 0
        assert made[:, mask == 1].mean() - sad[:, mask == 1].mean() > 80


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"to": {"smile": "big"}}, "smile"),
        ({"to": {"class": "angry"}}, "angry"),
        ({"to": {"caption": "a smile"}}, "prompt"),
        ({"to": {}}, "nothing is asked for"),
        ({"images": faces(0)[:, :4]}, "images: .* 4, 8, 3. given, expected .n, 8, 8, 3"),
        ({"images": faces(0)[..., :1]}, "images: "),
        ({"mask": np.ones((4, 8))}, "mask: .4, 8. given, expected .8, 8."),
        ({"strength": 0.0}, "strength: 0 given"),
        ({"strength": float("nan")}, "strength: nan given"),
        ({"method": "magic"}, "method: 'magic' given"),
        ({"sampler": "heun"}, "inversion undoes ddim alone"),
        ({"was": {"class": "furious"}}, "furious"),
        ({"steps": 1}, "takes at least 2"),
        ({"was": {"class": "sad"}, "guidance_kind": "autoguidance", "guidance": 2.0}, "autoguidance"),
    ],
)
def test_what_cannot_be_is_one_line(model: Generator, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        edit(model, **{"images": faces(0), "to": {"class": "happy"}, **given})


def test_a_value_that_says_nothing_is_no_edit(model: Generator) -> None:
    aged = {
        **OPTIONS,
        "condition": {**OPTIONS["condition"], "attributes": {"age": {"kind": "continuous", "range": [0, 9]}}},
    }
    told = generator(aged, Pixels(), Exact(), model.space, torch.device("cpu"), {"batch_size": 4}, {})
    for value in ("nan", " "):
        with pytest.raises(UserError, match="nothing is asked for"):
            edit(told, faces(0), {"age": value}, steps=3)
    edit(told, faces(0), {"age": "3"}, steps=3)
    edit(told, faces(0), {"age": " "}, {"age": "3"}, steps=3)  # no longer told


def test_a_model_that_was_always_told_must_be_told_what_was(model: Generator) -> None:
    told = {**OPTIONS, "condition": {"kind": "class", "drop": 0.0}}
    always = generator(told, Pixels(), Exact(), model.space, torch.device("cpu"), {"batch_size": 4}, {})
    with pytest.raises(UserError, match="say --was"):
        edit(always, faces(0), {"class": "happy"})
    edit(always, faces(0), {"class": "happy"}, {"class": "sad"}, steps=3)


def test_files_are_read_at_the_models_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.full((20, 30, 4), 200, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "black.png")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    assert read(tmp_path / "a.png", 3, (8, 8)).shape == (8, 8, 3)
    assert [file.name for file in files_of([tmp_path])] == ["a.png", "b.jpg", "black.png"]
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        files_of([tmp_path / "other"])
    with pytest.raises(UserError, match="the same file"):
        files_of([tmp_path / "a.png", tmp_path / "a.png"])
    with pytest.raises(UserError, match="no image that can be used"):
        read(tmp_path / "b.jpg", 3, (8, 8))
    with pytest.raises(UserError, match="is not there"):
        files_of([tmp_path / "c.png"])
    monkeypatch.setattr("pipeline.applications.given_images.MOST", 599)  # 20 x 30 less one
    with pytest.raises(UserError, match=r"a\.png: .*oversized: 30x20 is over 599 pixels\)"):
        read(tmp_path / "a.png", 3, (8, 8))  # no key of a config, which no verb takes
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "grid.png")
    assert len(files_of([tmp_path])) == 3
    with pytest.raises(UserError, match="the same file"):
        files_of([tmp_path / "grid.png"])
    with pytest.raises(UserError, match="black everywhere"):
        read_mask(tmp_path / "black.png", (8, 8))


def test_what_is_transparent_of_a_mask_is_not_painted(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[:, 3:, 3] = 0  # white below as well, as painting programs leave it
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert np.array_equal(np.flatnonzero(read_mask(tmp_path / "mask.png", (8, 8)).all(0)), [0, 1, 2])


def test_the_verb_writes_images_a_strip_and_what_made_them(
    model: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from jobs.edit import command

    monkeypatch.setattr("pipeline.generate.folder.load_pretrained", lambda *_, **__: model)
    for i, face in enumerate(faces(0, 2)):
        Image.fromarray(face).save(tmp_path / f"{i}.png")
    out = tmp_path / "out"
    asked = ["m", str(tmp_path / "0.png"), str(tmp_path / "1.png"), "--out", str(out), "--set", "class=happy",
             "--was", "class=sad", "--strength", "0.5,1", "--steps", "4"]  # fmt: skip
    assert CliRunner().invoke(command, asked, catch_exceptions=False).exit_code == 0
    names = ["0-0.5.png", "0-1.png", "1-0.5.png", "1-1.png", "asked.json", "grid.png"]
    assert sorted(file.name for file in out.iterdir()) == names
    assert read_json(out / "asked.json")["how"]["set"] == {"class": "happy"}
    assert Image.open(out / "grid.png").size == (4 * SIDE, 2 * SIDE)
    before = {name: (out / name).read_bytes() for name in names}
    (out / "asked.json.0123.tmp").write_text("")
    for name in ("1-1.png", "grid.png"):  # as if killed there
        (out / name).unlink()
    assert CliRunner().invoke(command, asked, catch_exceptions=False).exit_code == 0
    assert {name: (out / name).read_bytes() for name in names} == before
    for wrong, said in ((["--strength", "nan"], "strength: nan"), (["--strength", "1,1.0"], "twice"),
                        (["--guidance", "nan"], "guidance: nan"), (["--set", "class=hapy"], "hapy|twice"),
                        (["--mask", str(tmp_path / "none.png")], "cannot be read")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            CliRunner().invoke(command, [*asked, *wrong], catch_exceptions=False)
    (out / "asked.json").write_text("{")
    with pytest.raises(UserError, match="holds something else"):
        CliRunner().invoke(command, [*asked, "--seed", "1"], catch_exceptions=False)
