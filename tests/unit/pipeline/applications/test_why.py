"""Samples explained, of models whose every answer is known; files that are whole, and a call that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jobs.why import command
from models.diffusion.denoiser import build_network
from pipeline.applications import nearest as near
from pipeline.applications.nearest import Training
from pipeline.applications.why import shown, why
from pipeline.applications.why_pictures import heat, sheet
from pipeline.data.latents import LatentSpace
from pipeline.errors import UserError
from pipeline.evaluation.metrics.features import Extractor
from pipeline.files import read_json, sha256_file
from pipeline.generate import folder
from pipeline.generate.generator import Generator, generator
from pipeline.generate.sampling import noise_of
from tests.pixels import Pixels

SIDE = 8
OPTIONS: dict[str, Any] = {
    "latent": {"channels": 3, "size": SIDE},
    "condition": {"kind": "class", "drop": 0.1, "attributes": {"mood": {"kind": "categorical", "values": ["a", "b"]}}},
    "classes": ["up", "far up"],
    "path": {"kind": "rectified_flow", "schedule": "cosine"},
    "prediction": "velocity",
}


class Regions(nn.Module):
    """The class lifts the upper half of the only image there is by 0.3 or 0.6, the mood the two columns at the right by
    0.2; what is not told lifts nothing."""

    def forward(self, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        x0 = torch.zeros_like(x)
        x0[:, :, : SIDE // 2] += torch.tensor([0.3, 0.6, 0.0])[condition["class"]][:, None, None, None]
        x0[..., -2:] += torch.tensor([0.2, 0.2, 0.0])[condition["mood"]][:, None, None, None]
        return (x - x0) / t[:, None, None, None]  # eps - x0


def model_of(network: nn.Module, options: dict[str, Any]) -> Generator:
    space = LatentSpace(torch.zeros(3), torch.ones(3))
    usual = {"batch_size": 2, "steps": 4}
    return generator(options, Pixels(), network, space, torch.device("cpu"), usual, {"name": "known"})


MODEL = model_of(Regions(), OPTIONS)
CAPTION = {"tokens": 16, "drop": 0.0, "encoder": {"kind": "trained", "width": 8, "depth": 1, "heads": 2}}


@pytest.fixture(scope="module")
def told_words() -> Generator:
    torch.manual_seed(0)
    dit = {"kind": "dit", "width": 24, "depth": 2, "heads": 3, "patch": 2, "tokens": "cross"}
    options = {**OPTIONS, "condition": {"kind": "none", "drop": 0.1, "caption": CAPTION}, "classes": []}
    network = build_network(dit, "none", 3, SIDE, caption=CAPTION).eval()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model_of(network, options)


def test_guidance_acts_where_the_network_reacts_and_nowhere_else() -> None:
    request = MODEL.request(["up", "far up"], 2, 0, attributes={"mood": "a"}, guidance=1.5)
    one, two = why(MODEL, request, range(2), ["guidance"], levels=[1.0, 0.5])
    assert (one.image == MODEL.images(request)[0]).all() and (two.image == MODEL.images(request)[1]).all()
    assert one.facts["told"] == {"class": "up", "mood": "a"} and one.facts["seed"] == 0
    of_class, of_mood = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
    of_class[: SIDE // 2], of_mood[:, -2:] = 0.3, 0.2
    for sample, times in ((one, 1), (two, 2)):
        maps, figures = sample.maps, sample.facts["guidance"]
        steps = len(figures["levels"])
        assert steps == 4 and figures["levels"] == sorted(figures["levels"], reverse=True)
        expected = {"together": times * of_class + of_mood, "each/class": times * of_class, "each/mood": of_mood}
        for name, values in expected.items():
            np.testing.assert_allclose(maps[f"guidance/{name}"], np.broadcast_to(values, (4, SIDE, SIDE)), atol=1e-5)
            of = figures["together"] if name == "together" else figures["each"][name.partition("/")[2]]
            np.testing.assert_allclose(of["difference"], np.sqrt(np.square(values).mean()), atol=1e-5)
            np.testing.assert_allclose(of["share"], 1 / steps, atol=1e-5)
    picture = one.pictures["guidance"]
    assert picture.dtype == np.uint8 and picture.shape[1] == 3 * 128 + 2 * 4  # the sample, and two levels


def test_of_one_condition_there_is_one_map_and_of_an_ignored_one_it_is_zero() -> None:
    (one,) = why(MODEL, MODEL.request([0], 1), range(1), ["guidance"])
    assert set(one.maps) == {"guidance/together"} and (one.maps["guidance/together"][:, SIDE // 2 :] == 0).all()

    class Deaf(Regions):
        def forward(self, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
            return super().forward(x, t, {name: torch.zeros_like(value) for name, value in condition.items()})

    (one,) = why(model_of(Deaf(), OPTIONS), MODEL.request([1], 1), range(1), ["guidance"])
    assert (one.maps["guidance/together"] == 0).all() and one.facts["guidance"]["together"]["share"] == [0] * 4


def test_words_share_the_attention_with_what_is_no_word(told_words: Generator) -> None:
    request = told_words.request(None, 2, 0, prompts=["a red hat", "no, one"])
    first, second = why(told_words, request, range(2), ["words"])
    images = told_words.images(request)
    assert (first.image == images[0]).all() and (second.image == images[1]).all()
    assert [word["word"] for word in first.facts["words"]["of"]] == ["a", "red", "hat"]
    for sample in (first, second):
        of = [word["looks"] for word in sample.facts["words"]["of"]]
        total = sum(word["attention"] for word in of) + sample.facts["words"]["rest"]
        assert total == pytest.approx(1, abs=1e-5)
        assert all(0 < word["down"] < 1 and word["attention"] <= word["most"] < 1 for word in of)
        assert sample.maps["words/looks"].shape == (len(of), SIDE, SIDE)
    of = [word["looks"]["attention"] for word in first.facts["words"]["of"]]
    assert of[2] > of[0]  # three bytes, one
    assert first.pictures["words"].shape[:2] == (2 * (28 + 128) + 4, 4 * 128 + 3 * 4)


def test_a_word_changes_what_the_answer_is_without_it(told_words: Generator) -> None:
    """Of one step at t = 1, where x is the noise and x0 = x - velocity."""
    request, without = (
        told_words.request(None, 2, 3, prompts=["no, one", text], steps=1) for text in ("a red hat", "a hat")
    )
    found = why(told_words, request, range(2), ["words"])[1]
    x, t = noise_of(3, "sample", range(1, 2), (3, SIDE, SIDE), told_words.device), torch.ones(1)
    with torch.no_grad():
        whole, left = (told_words.network(x, t, told_words.told(one, range(1, 2))[0][0]) for one in (request, without))
    expected = (whole - left).square().mean(1).sqrt()[0]
    assert found.maps["words/changes"].shape == (3, SIDE, SIDE) and expected.min() > 0
    np.testing.assert_allclose(found.maps["words/changes"][1], expected.numpy(), rtol=1e-3)
    figures = found.facts["words"]["of"][1]
    assert figures["word"] == "red"
    assert figures["changes"]["difference"] == pytest.approx(float(expected.square().mean().sqrt()), rel=1e-3)


def test_all_that_a_model_can_is_shown(told_words: Generator) -> None:
    assert shown(MODEL, MODEL.request([0], 1)) == ["guidance", "nearest"]
    assert shown(told_words, told_words.request(None, 1, prompts=["a hat"])) == ["guidance", "words", "nearest"]
    assert shown(told_words, told_words.request(None, 1)) == ["nearest"]
    found = why(told_words, told_words.request(None, 1, prompts=["a hat"], steps=1), range(1))
    assert set(found[0].pictures) == {"guidance", "words"}  # no training images were given
    silent = why(told_words, told_words.request(None, 2, prompts=["a hat", ""], steps=1), range(1, 2), ["words"])[0]
    assert silent.facts["words"] == {"of": [], "rest": pytest.approx(1, abs=1e-5)}


@pytest.mark.parametrize(
    ("asked", "given", "said"),
    [
        (["words"], {"classes": [0]}, "words: this model does not attend to a caption"),
        (["magic"], {"classes": [0]}, "show: 'magic' given, expected some of guidance, words, nearest"),
        (["guidance"], {"classes": []}, None),
        (["guidance"], {"classes": None, "attributes": {"mood": None}}, "guidance: the samples are told nothing"),
        (["nearest"], {"classes": [0]}, "nearest: the training images are not given"),
    ],
)
def test_what_cannot_be_shown_is_one_line(asked: list[str], given: dict[str, Any], said: str | None) -> None:
    request = MODEL.request(given.pop("classes"), 1, 0, **given)
    if said is None:  # no class named is all of them, as `ldm sample` has it
        assert why(MODEL, request, range(1), asked)
        return
    with pytest.raises(UserError, match=said):
        why(MODEL, request, range(1), asked)


def test_levels_and_other_models_are_refused(told_words: Generator) -> None:
    for levels in ([], [0.0], [1.5], [float("nan")]):
        with pytest.raises(UserError, match=r"levels: .* given, expected above 0 to 1"):
            why(MODEL, MODEL.request([0], 1), range(1), ["guidance"], levels)
    with pytest.raises(UserError, match="several pieces"):
        why(told_words, told_words.request(None, 1, prompts=["a AND b"]), range(1))
    always = model_of(Regions(), {**OPTIONS, "condition": {**OPTIONS["condition"], "drop": 0.0}})
    with pytest.raises(UserError, match="guidance: this model knows no image of which nothing is told"):
        why(always, always.request([0], 1), range(1), ["guidance"])
    student = model_of(Regions(), {**OPTIONS, "student": {"steps": 2}})
    with pytest.raises(UserError, match="this model is a student"):
        why(student, student.request([0], 1, sampler="few"), range(1))


def test_heat_is_dark_where_nothing_is_and_light_where_most_is() -> None:
    image, values = np.full((8, 8, 1), 100, np.uint8), np.zeros((4, 4))
    values[0, 0] = 2.0
    shown_at = heat(image, values).astype(int)
    assert shown_at.shape == (8, 8, 3) and shown_at[0, 0].sum() > 500 and shown_at[4:].sum(-1).max() < 130
    assert (heat(image, np.zeros((4, 4))) == heat(image, values)[-1, -1]).all()  # nothing at all: all dark
    page = sheet([[("a", image), ("", None)], [("long words that go on and on and on and on", image)]])
    assert page.shape == (2 * (28 + 128) + 4, 2 * 128 + 4, 3) and (page[28:156, 132:] == 255).all()


def test_a_call_that_was_killed_goes_on_and_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.Generator(np.random.Philox(0)).integers(0, 255, (60, SIDE, SIDE, 3)).astype(np.uint8)
    extractor = Extractor("random", "0" * 64, "pixels", lambda x: x.flatten(1).float())
    lineage = [{"key": f"k/{i}", "class": "up", "shard": "s", "data": "ingest/1"} for i in range(60)]
    training = Training(images, extractor(images), extractor, lineage, {"trained_on": 60})
    monkeypatch.setattr(near, "training_of", lambda *_: training)
    monkeypatch.setattr(near, "data_of", lambda *_: None)
    monkeypatch.setattr(folder, "load_pretrained", lambda *_, **__: MODEL)
    kept: list[Any] = []
    monkeypatch.setattr("pipeline.applications.recorded.record", lambda *given: kept.append(given))
    out = tmp_path / "out"
    words = ["known", "--out", str(out), "-n", "3", "--classes", "up, far up", "--set", "mood=b", "-k", "2"]
    command.main(words, standalone_mode=False)
    names = {f"00000{i}{end}" for i in range(3) for end in (".png", ".json", "-guidance.png", "-nearest.png")}
    assert {file.name for file in out.iterdir()} == {*names, "asked.json", "guidance.png", "nearest.png", "why.json"}
    written = read_json(out / "why.json")
    assert [one["told"]["class"] for one in written["samples"]] == ["up", "far up", "up"]
    assert written["samples"][0]["nearest"]["pixels"][0]["key"].startswith("k/")
    assert len(written["means"]["guidance"]["each"]["mood"]["share"]) == 4
    ((_, verb, place, said, files),) = kept
    assert (verb, place, files) == ("why", out, ["guidance.png", "nearest.png"]) and "3 samples explained" in said
    before = {file.name: sha256_file(file) for file in out.iterdir()}
    for name in ("000002.json", "000002-nearest.png", "why.json", "guidance.png"):
        (out / name).unlink()
    at = (out / "000000.png").stat().st_mtime_ns
    command.main(words, standalone_mode=False)
    assert {file.name: sha256_file(file) for file in out.iterdir()} == before
    assert (out / "000000.png").stat().st_mtime_ns == at
    for more, said in (
        (["--seed", "1"], "holds something else"),
        (["--levels", "some"], "--levels some: expected numbers"),
        (["--show", "words"], "words: this model does not attend"),
        (["--prompt", "a hat"], "prompt: this model was trained without captions"),
    ):
        with pytest.raises(UserError, match=said):
            command.main([*words, *more], standalone_mode=False)


def test_a_model_of_no_run_here_is_explained_without_its_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folder, "load_pretrained", lambda *_, **__: MODEL)
    words = ["known", "--root", str(tmp_path), "--out", str(tmp_path / "out"), "-n", "1", "--classes", "up"]
    with pytest.raises(UserError, match="nearest: this model does not say what it was trained on"):
        command.main([*words, "--show", "nearest"], standalone_mode=False)
    assert not (tmp_path / "out").exists()
    command.main(words, standalone_mode=False)
    assert capsys.readouterr().out.startswith("left out: nearest: this model does not say")
    assert (tmp_path / "out" / "guidance.png").is_file() and not (tmp_path / "out" / "nearest.png").exists()
