"""Model folders, sampling that does not depend on the batch, files of samples."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models import registry
from pipeline.data.latents import LatentSpace
from pipeline.data.pictures import grid
from pipeline.errors import UserError
from pipeline.files import read_json, sha256_file
from pipeline.generate import sampling
from pipeline.generate.class_numbers import class_number
from pipeline.generate.finite import NotFinite
from pipeline.generate.folder import load_pretrained, save_pretrained
from pipeline.generate.generator import Generator, generator
from pipeline.generate.samples import sample_info, write_samples
from pipeline.generate.sampling import DEFAULTS, guidance_of
from pipeline.networks import build_network
from pipeline.training import snapshots

AUTOENCODER = {"kind": "kl", "preset": "tiny-f2"}


def options(**changes) -> dict:
    backbone = {"kind": "dit", "width": 24, "depth": 2, "heads": 2, "patch": 1}
    return {
        "latent": {"channels": 4, "size": 4},
        "backbone": backbone,
        "condition": {"kind": "class", "drop": 0.1},
        "classes": ["zero", "one", "two"],
        "path": {"kind": "rectified_flow", "schedule": "cosine"},
        "prediction": "velocity",
        **changes,
    }


def small(channels: int = 3, **changes) -> Generator:
    """Random weights; the zero-initialised layers are filled, so that class and noise matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = registry.build("autoencoders", AUTOENCODER, channels=channels)
        network = build_network(options(**changes))
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    space = LatentSpace(torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([1.0, 0.5, 2.0, 1.5]))
    of = options(**changes)
    defaults = {"steps": 3, "batch_size": 4, "sampler": "euler"}
    return generator(of, autoencoder.eval(), network.eval(), space, torch.device("cpu"), defaults, {"name": "small"})


@pytest.fixture(scope="module")
def model() -> Generator:
    return small()


@pytest.fixture
def folder(model: Generator, tmp_path: Path) -> Path:
    save_pretrained(
        tmp_path / "model",
        name="small",
        image={"size": 8, "channels": 3},
        options=model.options,
        autoencoder=AUTOENCODER,
        autoencoder_weights=model.autoencoder.state_dict(),
        denoiser_weights=model.network.state_dict(),
        space=model.space,
        defaults=model.defaults,
        lineage={"diffusion": {"fingerprint": "ab", "content": "cd" * 32}},
    )
    return tmp_path / "model"


# ---- sampling


def test_images_are_uint8_and_differ_by_seed_class_and_number(model: Generator) -> None:
    images = model.sample(classes=[0, 1], n=4, seed=0)
    assert images.shape == (4, 8, 8, 3)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 4
    assert not np.array_equal(images, model.sample(classes=[0, 1], n=4, seed=1))
    assert not np.array_equal(images[0], model.sample(classes=[2], n=1, seed=0)[0])


@pytest.fixture(scope="module")
def wide() -> Generator:
    """Wide enough for a product's rounding to depend on the shape of the batch: 1, 2 and 8 rows differ from 16."""
    of = small(backbone={"kind": "dit", "preset": "dit-xxs/1"}, latent={"channels": 4, "size": 8})
    of.defaults["batch_size"] = 16
    return of


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "ddpm", "euler_ancestral"])
def test_the_image_of_a_seed_does_not_depend_on_the_batch(wide: Generator, sampler: str) -> None:
    """Bit for bit: alone, in a batch that is filled up, in several batches, beside other classes."""
    request = {"seed": 0, "sampler": sampler, "guidance": 2.0}
    many = wide.sample(classes=[0, 1, 2], n=40, **request)
    for n in (1, 2, 8, 17):
        assert np.array_equal(wide.sample(classes=[0, 1, 2], n=n, **request), many[:n])
    # image 4 has class 1 in both
    assert np.array_equal(wide.sample(classes=[1], n=5, **request)[4], many[4])


def test_another_batch_size_changes_rounding_at_most(model: Generator) -> None:
    images = [model.sample(classes=[0], n=6, seed=0, batch_size=size).astype(int) for size in (1, 4, 6)]
    for other in images[1:]:
        assert np.abs(images[0] - other).max() <= 1


def test_sampling_uses_no_global_generator(model: Generator) -> None:
    before = torch.get_rng_state()
    model.sample(n=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_guidance_of_one_is_none_and_more_changes_the_image(model: Generator) -> None:
    plain, one, two = (model.sample(classes=[1], n=1, guidance=g) for g in (None, 1.0, 3.0))
    assert np.array_equal(plain, one)
    assert not np.array_equal(plain, two)


def test_images_that_are_not_finite_are_no_images(model: Generator) -> None:
    """As bytes they would be black."""
    with pytest.raises(NotFinite, match=r"^4 of 4 images from number 0 on are .* guidance is 1e\+30: give less"):
        model.sample(n=9, guidance=1e30)
    for value in (math.nan, math.inf, -math.inf):
        latents = torch.zeros(6, 4, 4, 4)
        latents[5, 1, 2, 3] = value
        with pytest.raises(NotFinite, match=r"^1 of 2 images from number 4 on are not finite"):
            model.decode(latents, batch_size=4)
    broken = small()
    with torch.no_grad():
        next(iter(broken.autoencoder.decoder.parameters())).fill_(math.nan)
    with pytest.raises(NotFinite, match=r"^1 of 1 images .* \(3 were taken\)"):
        broken.sample(n=1)


def test_rows_that_fill_the_last_batch_do_not_count(model: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def latents(*values: object) -> torch.Tensor:
        found = torch.zeros(4, 4, 4, 4)
        found[2:] = math.nan
        return found

    monkeypatch.setattr(sampling, "latents", latents)
    assert model.sample(n=2).shape == (2, 8, 8, 3)
    with pytest.raises(NotFinite, match=r"^1 of 3 images "):
        model.sample(n=3)


def test_grids_and_stochastic_samplers_change_the_image(model: Generator) -> None:
    request = {"classes": [1], "n": 1, "sampler": "ddim"}
    images = [
        model.sample(**request),
        model.sample(**request, grid="karras"),
        model.sample(**request, grid="shifted"),
        model.sample(**request, grid="shifted", shift=3.0),
        model.sample(classes=[1], n=1, sampler="ddpm"),
        model.sample(classes=[1], n=1, sampler="ddpm", seed=1),
    ]
    assert len({image.tobytes() for image in images}) == len(images)
    assert np.array_equal(images[2], model.sample(**request, grid="shifted", shift=4 / 32))  # of latents 4 wide


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "ddpm", "dpmpp_sde", "euler_ancestral"])
@pytest.mark.parametrize("path", ["edm", "variance_preserving"])
@pytest.mark.parametrize("noise_left", [0.0, 1.0])
def test_normal_latents_come_out_normal(sampler: str, path: str, noise_left: float) -> None:
    """A network that gives v = 0 is the ideal one of N(0, I): where the walk begins and what noise each step gets both
    decide on the deviation at its end, to which comes the noise that is left there."""

    class Zero(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, condition: object) -> torch.Tensor:
            return torch.zeros_like(x)

    given = options(path={"kind": path, "schedule": "cosine"}, prediction="v")
    request = {**DEFAULTS, "sampler": sampler, "steps": 200, "seed": 0, "grid": "karras", "noise_left": noise_left}
    latents = sampling.latents(Zero(), Zero, given, request, range(200), [{}], {}, torch.device("cpu"))
    assert latents.std().item() == pytest.approx(math.hypot(1.0, noise_left), abs=0.04)
    assert latents.mean().item() == pytest.approx(0.0, abs=0.04)


def test_guidance_in_an_interval_and_rescaled(model: Generator) -> None:
    request = {"classes": [1], "n": 1, "guidance": 3.0}
    plain, guided = model.sample(classes=[1], n=1), model.sample(**request)
    assert np.array_equal(model.sample(**request, guidance_interval=[0.0, math.inf]), guided)
    assert np.array_equal(model.sample(**request, guidance_interval=[1e8, 1e9]), plain)
    assert not np.array_equal(model.sample(**request, guidance_rescale=0.7), guided)


def test_figures_of_unlike_guidance_are_named_apart(model: Generator) -> None:
    assert guidance_of(model.request(n=1, guidance=2.0)) == 2.0
    assert guidance_of(model.request(n=1, guidance=1.0, guidance_rescale=0.5)) == 1.0
    found = guidance_of(model.request(n=1, guidance=2.0, guidance_interval=[0.3, 3.0], guidance_rescale=0.5))
    assert found == "2 in (0.3, 3] rescaled by 0.5"
    assert guidance_of({}) is None


def test_autoguidance_by_weaker_weights(model: Generator, tmp_path: Path) -> None:
    """The same weights lead nowhere; others do; only the file that is asked for is read."""
    same = model.network.state_dict()
    save_file({name: value.contiguous() for name, value in same.items()}, tmp_path / "same.safetensors")
    save_file({name: (0.8 * value).contiguous() for name, value in same.items()}, tmp_path / "other.safetensors")
    snapshots = {name: tmp_path / f"{name}.safetensors" for name in ("same", "other", "absent")}
    of = replace(model, averages=snapshots, _loaded={})
    state = torch.get_rng_state()
    request = {"classes": [1, 2], "n": 2, "guidance": 3.0, "guidance_kind": "autoguidance"}
    plain, unmoved = model.sample(classes=[1, 2], n=2), of.sample(**request, guidance_weak="same")
    assert np.abs(plain.astype(int) - unmoved.astype(int)).max() <= 1
    moved = of.sample(**request, guidance_weak="other")
    assert np.abs(plain.astype(int) - moved.astype(int)).max() > 1
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UserError, match="kept: absent, other, same"):
        of.sample(**request, guidance_weak="live")


def test_classes_by_name_and_number_and_all_in_turn(model: Generator) -> None:
    by_name = model.sample(classes=["one", "two"], n=4)
    assert np.array_equal(by_name, model.sample(classes=[1, 2], n=4))
    assert np.array_equal(by_name, model.sample(classes=["1", "2"], n=4))
    assert np.array_equal(model.sample(n=6), model.sample(classes=[0, 1, 2], n=6))
    assert len(model.sample(classes=[1, 1, 2])) == 3
    for one in (2, np.int64(2), "two"):  # one class, without its brackets
        assert np.array_equal(model.sample(classes=one, n=2), model.sample(classes=[2], n=2))
    assert model.request(classes="two")["n"] == 1


def test_a_class_is_its_name_where_another_one_has_that_number(tmp_path: Path) -> None:
    names = ["1", "2", "10"]
    of = small(classes=names)
    assert [class_number(value, names) for value in (2, "2", np.int64(2), " 2 ", 0, "10")] == [1, 1, 1, 1, 0, 2]
    with pytest.raises(UserError, match=r"class 3 is neither one of the names \(1, 2, 10\)"):
        of.sample(classes=[3])
    two = of.sample(classes=["2"], n=2)
    assert np.array_equal(of.sample(classes=[2], n=2), two)
    assert np.array_equal(of.sample(classes=2, n=2), two) and np.array_equal(of.sample(classes="2", n=2), two)
    assert not np.array_equal(of.sample(classes=["1"], n=2), two)
    request = of.request(classes=["2", "10"], n=2)
    assert request["classes"] == [1, 2]
    images = of.sample(**request)  # what comes back is not read as names once more
    assert np.array_equal(images, of.sample(classes=["2", "10"], n=2))
    write_samples(tmp_path / "out", images, sample_info(of, request))
    info = read_json(tmp_path / "out" / "samples.json")
    assert [entry["class"] for entry in info["images"]] == [1, 2]
    assert np.array_equal(of.sample(**info["request"]), images)  # nor is its JSON
    assert np.array_equal(of.sample(n=3), of.sample(classes=names))


def test_one_class_may_be_given_alone_and_blanks_do_no_harm(model: Generator) -> None:
    assert model.request(classes=2)["classes"] == model.request(classes="two")["classes"] == [2]
    assert model.request(classes=[" one", " two"])["classes"] == [1, 2]
    assert class_number(" a", ["a", " a"]) == 1  # a name that has a blank


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "velocity"])
@pytest.mark.parametrize("kind", ["rectified_flow", "variance_preserving", "edm"])
def test_all_paths_and_predictions_give_finite_latents(prediction: str, kind: str) -> None:
    for schedule in ("linear", "cosine", "zero_terminal_snr") if kind == "variance_preserving" else ("cosine",):
        of = small(path={"kind": kind, "schedule": schedule}, prediction=prediction)
        seen: list[torch.Tensor] = []
        decode = of._decoded
        object.__setattr__(of, "_decoded", lambda x, seen=seen, decode=decode: (seen.append(x), decode(x))[1])
        of.sample(n=2)
        assert torch.isfinite(seen[0]).all()


def test_a_model_without_classes() -> None:
    of = small(condition={"kind": "none", "drop": 0.0})
    assert of.classes == []
    assert of.sample(n=2).shape == (2, 8, 8, 3)
    assert np.array_equal(of.sample(**of.request(n=2)), of.sample(n=2))  # as `ldm sample` and evaluate ask
    with pytest.raises(UserError, match="no class condition"):
        of.sample(classes=[1])
    with pytest.raises(UserError, match=r"condition\.drop"):
        of.sample(guidance=2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": [3]}, "number from 0 to 2"),
        ({"classes": [-1]}, "number from 0 to 2"),
        ({"classes": ["three"]}, "zero, one, two"),
        ({"n": 0}, "n: 0"),
        ({"steps": 0}, "steps: 0"),
        ({"batch_size": -1}, "batch_size: -1"),
        ({"seed": -1}, "seed: -1"),
        ({"sampler": "magic"}, "none of ddim, ddpm, dpmpp_2m, dpmpp_sde, euler"),
        ({"guidance": float("nan")}, "guidance: nan"),
        ({"guidance": -1.0}, "guidance: -1"),
        ({"grid": "sine"}, "grid: 'sine' is none of auto, uniform"),
        ({"shift": 0.0, "grid": "shifted"}, "shift: 0.0"),
        ({"shift": 2.0}, "shift: 2.0 given, but the grid is auto"),
        ({"guidance_kind": "magic"}, "guidance_kind: 'magic'"),
        ({"guidance_rescale": 1.5}, "guidance_rescale: 1.5"),
        ({"noise_left": -1.0}, "noise_left: -1.0 given, expected a noise level"),
        ({"noise_left": 0.5}, "noise_left: for decoders of text"),
        ({"guidance_interval": [2.0, 1.0]}, "guidance_interval: .*low < high"),
        ({"guidance": 2.0, "guidance_kind": "autoguidance"}, "weights 'live' are not kept with this model; kept: none"),
        ({"guidence_rescale": 0.5}, "guidence_rescale: .*did you mean guidance_rescale"),
    ],
)
def test_wrong_requests_are_a_users_mistake(model: Generator, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.sample(**arguments)


def test_decode_inverts_encode_as_far_as_the_autoencoder_does(model: Generator) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    latents = model.encode(images, batch_size=2)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        mean = model.autoencoder.encode(x)[:, :4]
        expected = ((model.autoencoder.decode(mean).clamp(-1, 1) + 1) * 127.5).round()
    assert torch.allclose(latents, model.space.normalise(mean), atol=1e-5)
    got = model.decode(latents, batch_size=3).astype(int)
    assert np.abs(got - expected.permute(0, 2, 3, 1).numpy()).max() <= 1


# ---- the folder


def test_a_saved_model_gives_the_same_images(model: Generator, folder: Path) -> None:
    loaded = load_pretrained(folder, device="cpu")
    assert np.array_equal(loaded.sample(n=5, seed=2), model.sample(n=5, seed=2))
    assert loaded.defaults["steps"] == 3
    assert loaded.about["name"] == "small"
    assert loaded.about["lineage"] == {"diffusion": {"fingerprint": "ab", "content": "cd" * 32}}


def test_the_folder_holds_what_it_says_and_no_pickle(model: Generator, folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "latents.json", "autoencoder.safetensors", "denoiser.safetensors"}
    config = read_json(folder / "config.json")
    assert config["weights"]["denoiser.safetensors"] == sha256_file(folder / "denoiser.safetensors")
    assert config["autoencoder"]["width"] == 32  # the preset is written out: the table may change
    stored = load_file(folder / "denoiser.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in model.network.state_dict().items())


def test_a_folder_with_the_weights_of_autoguidance(model: Generator, tmp_path: Path) -> None:
    weaker = {name: 0.8 * value for name, value in model.network.state_dict().items()}
    save_pretrained(
        tmp_path / "model",
        name="small",
        image={"size": 8, "channels": 3},
        options=model.options,
        autoencoder=AUTOENCODER,
        autoencoder_weights=model.autoencoder.state_dict(),
        denoiser_weights=model.network.state_dict(),
        space=model.space,
        defaults={**model.defaults, "guidance": 2.0, "guidance_kind": "autoguidance", "guidance_weak": 500},
        weaker_weights=weaker,
    )
    loaded = load_pretrained(tmp_path / "model", device="cpu")
    save_file({name: value.contiguous() for name, value in weaker.items()}, tmp_path / "w.safetensors")
    of = replace(model, averages={"500": tmp_path / "w.safetensors"}, _loaded={})
    expected = of.sample(n=3, guidance=2.0, guidance_kind="autoguidance", guidance_weak=500)
    assert np.array_equal(loaded.sample(n=3), expected)
    (tmp_path / "model" / "weaker.safetensors").unlink()
    with pytest.raises(UserError, match=r"weaker\.safetensors: missing"):
        load_pretrained(tmp_path / "model")


def test_damage_is_named(folder: Path) -> None:
    path = folder / "denoiser.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"denoiser\.safetensors"):
        load_pretrained(folder)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        load_pretrained(folder)


def test_what_is_no_model_is_a_users_mistake(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_pretrained(tmp_path)
    with pytest.raises(UserError, match="no run of that name, key or MLflow id"):
        load_pretrained("digits", root=tmp_path)
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not the config"):
        load_pretrained(folder)


def test_weights_of_another_model_are_named(folder: Path) -> None:
    config = read_json(folder / "config.json")
    config["backbone"]["depth"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="weights of another model"):
        load_pretrained(folder)


# ---- files of samples


def test_grid_places_images_row_by_row_and_leaves_the_rest_white() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(3, 2)  # [5, 2, 3, 1]
    sheet = grid(images, columns=3)
    assert sheet.shape == (4, 9, 3)
    assert sheet[::2, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 255]]
    assert (sheet == np.repeat(sheet[..., :1], 3, axis=2)).all()
    assert grid(images).shape == (4, 9, 3)
    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3)).astype(np.uint8)
    assert np.array_equal(grid(colours)[5:, :5], colours[2])


@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_samples(tmp_path: Path, channels: int) -> None:
    of = small(channels)
    request = of.request(classes=["two", "zero"], n=3, seed=7)
    images = of.sample(**request)
    out = write_samples(tmp_path / "out", images, sample_info(of, request))
    names = sorted(path.name for path in out.iterdir())
    assert names == ["000000.png", "000001.png", "000002.png", "grid.png", "samples.json"]
    for i in range(3):
        with Image.open(out / f"{i:06d}.png") as image:
            assert np.array_equal(np.asarray(image).reshape(8, 8, channels), images[i])
    info = read_json(out / "samples.json")
    assert [entry["class"] for entry in info["images"]] == [2, 0, 2]
    assert info["images"][1]["sha256"] == sha256_file(out / "000001.png")
    assert info["class_names"] == ["zero", "one", "two"]
    assert np.array_equal(of.sample(**info["request"]), images)  # the JSON is enough to make them again
    with pytest.raises(UserError, match="not an empty folder"):
        write_samples(out, images, sample_info(of, request))


def test_other_weights_for_a_model_folder(folder: Path, tmp_path: Path) -> None:
    weights = {name: value * 2 for name, value in load_file(folder / "denoiser.safetensors").items()}
    other = tmp_path / "other.safetensors"
    snapshots.write(other, weights, {"made_of": "cd" * 32})
    loaded = load_pretrained(folder, weights=str(other))
    assert all(torch.equal(value, weights[name]) for name, value in loaded.network.state_dict().items())
    assert loaded.about["weights"]["denoiser.safetensors"] == sha256_file(other)
    snapshots.write(other, weights, {"made_of": "ef" * 32})
    with pytest.raises(UserError, match="made of a training with content efefefefefef"):
        load_pretrained(folder, weights=str(other))
    with pytest.raises(UserError, match=r"a model folder has one set only; give a .safetensors file"):
        load_pretrained(folder, weights="length-0.1")


def bucketed() -> Generator:
    return small(latent={"channels": 4, "size": 4, "buckets": [[4, 4], [6, 2], [2, 6]]})


def test_a_model_of_several_shapes(model: Generator) -> None:
    several = bucketed()
    assert several.shapes == [(8, 8), (12, 4), (4, 12)] and model.shapes == [(8, 8)]
    assert np.array_equal(several.sample([1], n=2), model.sample([1], n=2))  # the first shape is the usual one
    assert np.array_equal(several.sample([1], n=2, shape=(8, 8)), model.sample([1], n=2))
    lying = several.sample([1], n=5, shape=(4, 12))
    assert lying.shape == (5, 4, 12, 3) and lying.any()
    assert np.array_equal(several.sample([1], n=2, shape=[4, 12]), lying[:2])
    request = several.request([1], 2, shape=(4, 12))
    assert request["shape"] == [4, 12] and "shape" not in several.request([1], 2)
    assert np.array_equal(several.images(request, first=3), lying[3:])
    with pytest.raises(UserError, match=r"^size: 12x12 \(height x width\) is none of this model's: 8x8, 12x4, 4x12$"):
        several.sample([1], n=1, shape=(12, 12))
    with pytest.raises(UserError, match=r"none of this model's: 8x8$"):
        model.sample([1], n=1, shape=(4, 12))


def test_the_shift_of_a_shape_is_that_of_its_area() -> None:
    several = bucketed()
    request = {"classes": [1], "n": 1, "grid": "shifted", "shape": (12, 4)}
    assert np.array_equal(several.sample(**request), several.sample(**request, shift=12**0.5 / 32))


def test_a_folder_keeps_the_shapes(tmp_path: Path) -> None:
    several = bucketed()
    save_pretrained(
        tmp_path / "model", name="several", image={"size": 8, "channels": 3, "buckets": [[8, 8], [12, 4], [4, 12]]},
        options=several.options, autoencoder=AUTOENCODER, autoencoder_weights=several.autoencoder.state_dict(),
        denoiser_weights=several.network.state_dict(), space=several.space,
    )  # fmt: skip
    assert load_pretrained(tmp_path / "model").shapes == several.shapes
