"""A direction that is known, found in features, written, read, and gone along by the model of test_edit.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from jobs.edit import command as edit_command
from jobs.probe import command as probe_command
from pipeline.applications import directions
from pipeline.applications.edit import edit
from pipeline.applications.probe import load
from pipeline.errors import UserError
from pipeline.files import canonical_json, read_json
from pipeline.generate.generator import Generator
from tests.unit.pipeline.applications.test_edit import SIDE, faces, model  # noqa: F401

ABOUT = {"model": {"name": "exact"}}
N = 30  # images of each value


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of "no" and "yes", whose latents differ by 0.25 in the first channel; images held out say nothing true."""
    draw = np.random.Generator(np.random.Philox(0))
    values = np.array(["no", "yes", "", "no"]).repeat(N)
    latents = 0.1 * draw.standard_normal((4 * N, 3, SIDE, SIDE))
    latents[values == "yes", 0] += 0.25
    latents[3 * N :] += 9
    arrays: dict[str, Any] = {
        "keys": np.array([f"{i}" for i in range(4 * N)]),
        "labels": np.full(4 * N, "a"),
        "split": np.array(["train", "train", "train", "val"]).repeat(N),
        "column/smile": values,
        "t0.10/block1": np.zeros((4 * N, 2), np.float16),
        "latents": latents.astype(np.float16),
        "about": np.array(canonical_json(ABOUT)),
    }
    path = tmp_path_factory.mktemp("features") / "f.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def direction(features: Path) -> Path:
    out = features.with_name("smile.safetensors")
    asked = [str(features), "--between", "no,yes", "--target", "smile", "--out", str(out)]
    for _ in range(2):  # the second time it is there
        said = CliRunner().invoke(probe_command, asked, catch_exceptions=False).output
        assert f"from {N} images of no to {N} of yes" in said
    with pytest.raises(UserError, match="holds something else"):
        CliRunner().invoke(probe_command, [*asked, "--between", "yes,no"], catch_exceptions=False)
    return out


def test_it_is_the_difference_of_the_means_without_what_was_held_out(direction: Path, model: Generator) -> None:  # noqa: F811
    found = directions.read(direction, model)
    assert found.shape == (3, SIDE, SIDE) and found.dtype == np.float32
    assert np.abs(found.mean((1, 2)) - [0.25, 0, 0]).max() < 0.02  # 0.1 * sqrt(2 / (N * 64)) is 0.003


@pytest.mark.parametrize("method", ["inversion", "noise"])
def test_images_move_along_it_as_far_as_asked(model: Generator, method: str) -> None:  # noqa: F811
    """White latents of deviation 0.1 about their mean: the denoiser hardly hears what lies elsewhere, so a step that is
    added to what it says is what moves them, in the channel alone that the direction has."""
    neutral, step = faces(1), np.zeros((3, SIDE, SIDE), np.float32)
    step[0] = 0.25

    def moved(by: float) -> Any:
        how: dict[str, Any] = {"method": method, "steps": 20, "strength": 0.8}
        there, here = (edit(model, neutral, {}, along=far * step, **how).astype(float) for far in (by, 0))
        return (there - here).mean((0, 1, 2))

    once, twice, back = moved(1), moved(2), moved(-1)
    assert once[0] > 1 and abs(twice[0] - 2 * once[0]) < 0.5 and abs(back[0] + once[0]) < 0.5
    assert np.abs(once[1:]).max() < 0.2


def test_a_direction_of_no_length_changes_nothing(model: Generator) -> None:  # noqa: F811
    zero = np.zeros((3, SIDE, SIDE), np.float32)
    plain = edit(model, faces(1), {"class": "happy"}, {"class": "neutral"}, steps=8)
    assert np.array_equal(edit(model, faces(1), {"class": "happy"}, {"class": "neutral"}, steps=8, along=zero), plain)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--between", "no"], "expected two values"),
        (["--between", "no,no"], "expected two values"),
        (["--between", "no,maybe"], "0 images of 'maybe', expected 20 at least; values: no, yes"),
        (["--between", "a,b", "--target", "hat"], "no such column; it has: smile"),
        (["--out", "direction.json"], "give --out NAME.safetensors"),
        (["--box", "a,b,c,d"], "leave --target and --between out"),
    ],
)
def test_what_cannot_be_found_is_one_line(features: Path, tmp_path: Path, given: list[str], said: str) -> None:
    asked = [
        str(features),
        "--between",
        "no,yes",
        "--target",
        "smile",
        "--out",
        str(tmp_path / "d.safetensors"),
        *given,
    ]
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(probe_command, asked, catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_features_without_latents_are_refused(features: Path, tmp_path: Path) -> None:
    with np.load(features) as file:
        np.savez(tmp_path / "bare.npz", **{name: file[name] for name in file if name != "latents"})
    with pytest.raises(UserError, match="run `ldm features` without --bare"):
        directions.found(load(tmp_path / "bare.npz"), "no", "yes", "smile")


def test_another_file_is_no_direction(direction: Path, features: Path, tmp_path: Path, model: Generator) -> None:  # noqa: F811
    found = directions.read(direction, model)
    (tmp_path / "cut").write_bytes(direction.read_bytes()[:-1])
    directions.write(tmp_path / "small", found[:, :4].copy(), ABOUT)
    directions.write(tmp_path / "nan", found * np.float32("nan"), ABOUT)
    directions.write(tmp_path / "double", found.astype(np.float64), ABOUT)
    save_file({"direction": torch.from_numpy(found)}, tmp_path / "mute")
    directions.write(tmp_path / "other", found, {"model": {"lineage": {"encode": {"fingerprint": "0"}}}})
    for path, said in ((tmp_path / "none", "cannot be read"), (tmp_path, "cannot be read"),
                       (features, "is no direction"), (tmp_path / "cut", "is no direction"),
                       (tmp_path / "mute", "is no direction"), (tmp_path / "small", "expected finite float32 of"),
                       (tmp_path / "nan", "expected finite"), (tmp_path / "double", "float64"),
                       (tmp_path / "other", "in other latents")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            directions.read(path, model)


def test_the_verb_goes_along_it_by_several_amounts(
    direction: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Generator  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.generate.folder.load_pretrained", lambda *_, **__: model)
    Image.fromarray(faces(1, 1)[0]).save(tmp_path / "0.png")
    out = tmp_path / "out"
    asked = ["m", str(tmp_path / "0.png"), "--out", str(out), "--along", str(direction), "--steps", "8"]
    assert CliRunner().invoke(edit_command, [*asked, "--by", "-4,4"], catch_exceptions=False).exit_code == 0
    assert sorted(file.name for file in out.iterdir()) == ["0--4.png", "0-4.png", "asked.json", "grid.png"]
    less, more = (np.asarray(Image.open(out / f"0-{by}.png")).astype(float)[..., 0].mean() for by in ("-4", "4"))
    assert more > less + 5
    how = read_json(out / "asked.json")["how"]
    assert how["by"] == [-4, 4] and len(how["along"]) == 64
    for wrong, said in ((["--by", "nan"], "finite"), (["--by", "1,2", "--strength", "0.4,0.6"], "one of either"),
                        (["--by", "1,1"], "twice")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            CliRunner().invoke(edit_command, [*asked, *wrong], catch_exceptions=False)
    with pytest.raises(UserError, match="give it with --along"):
        CliRunner().invoke(edit_command, [*asked[:4], "--by", "2"], catch_exceptions=False)
