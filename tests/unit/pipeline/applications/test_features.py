"""Activations of a small DiT over pixels: what they are, what they hang on, and how they are kept."""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from jobs.features import command
from models.diffusion.denoiser import build_network
from pipeline.applications import features, given_data
from pipeline.applications.features import Wanted, activations
from pipeline.cluster.inline import Inline
from pipeline.data.latents import LatentSpace
from pipeline.data.order import Draw, draw_batch
from pipeline.errors import UserError
from pipeline.generate.generator import Generator, generator
from tests.unit.pipeline.applications.test_edit import Pixels

SIDE = 8
Images = np.ndarray[Any, np.dtype[np.uint8]]


class Killed(BaseException):
    """As a signal would end a call."""


def made(kind: str = "dit", path: str = "rectified_flow", drop: float = 0.1) -> Generator:
    options: dict[str, Any] = {
        "latent": {"channels": 3, "size": SIDE},
        "backbone": {"kind": "dit", "width": 16, "depth": 2, "heads": 2, "patch": 4},
        "condition": {"kind": "class", "drop": drop},
        "classes": ["dark", "light"],
        "path": {"kind": path, "schedule": "linear"},
        "prediction": "velocity",
    }
    if kind == "unet":
        options["backbone"] = {
            "kind": "unet",
            "width": 8,
            "multipliers": [1],
            "blocks": 1,
            "groups": 4,
            "attention": [False],
            "head_width": 8,
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(options["backbone"], "class", 3, SIDE, 2)
        for value in network.parameters():  # a new block is the identity
            torch.nn.init.normal_(value, std=0.3)
    space = LatentSpace(torch.tensor([0.1, 0.0, -0.1]), torch.tensor([0.5, 1.0, 2.0]))
    about = {"name": kind, "weights": {"denoiser.safetensors": f"{kind} {path}"}}
    return generator(options, Pixels(), network.eval(), space, torch.device("cpu"), {"batch_size": 4}, about)


@pytest.fixture(scope="module")
def model() -> Generator:
    return made()


def images(n: int = 6) -> Images:
    draw = np.random.Generator(np.random.Philox(0))
    return draw.integers(0, 256, (n, SIDE, SIDE, 3), np.uint8)


def close(a: Any, b: Any) -> bool:
    return bool(np.allclose(a, b, rtol=2e-3, atol=2e-3))  # float16


def test_what_an_activation_is(model: Generator) -> None:
    found = activations(model, images(), list("abcdef"), Wanted((0.0, 0.3), (1, 2), maps=True))
    assert list(found) == ["t0.00/block1", "t0.00/block2", "t0.30/block1", "t0.30/block2"]
    assert {array.shape for array in found.values()} == {(6, 16, 2, 2)} and found["t0.30/block1"].dtype == np.float16
    z = model.encode(images())
    noise = draw_batch(0, "features", [features._number(key) for key in "abcdef"], [Draw("e", "normal", (3, 8, 8))])
    x = 0.7 * z + 0.3 * torch.from_numpy(noise["e"])
    with torch.no_grad():
        _, (tokens,) = model.network(x, torch.full((6,), 0.3), {"class": torch.full((6,), 2)}, depths=(1,))
    assert close(found["t0.30/block1"], tokens.transpose(1, 2).reshape(6, 16, 2, 2))
    pooled = activations(model, images(), list("abcdef"), Wanted((0.3,), (1,)))["t0.30/block1"]
    assert close(pooled, found["t0.30/block1"].astype(np.float32).mean((2, 3)))


def test_they_hang_on_the_image_its_key_and_the_seed_alone(model: Generator) -> None:
    wanted, other = Wanted((0.0, 0.5), (2,)), Wanted((0.0, 0.5), (2,), seed=1)
    one = activations(model, images(), list("abcdef"), wanted)
    part = activations(model, images()[3:], list("def"), wanted)
    assert all(close(part[name], one[name][3:]) for name in one)
    keys, seeds = activations(model, images(), list("xbcdef"), wanted), activations(model, images(), "abcdef", other)
    noised, clean = "t0.50/block2", "t0.00/block2"
    assert close(keys[noised][1:], one[noised][1:]) and not close(keys[noised][0], one[noised][0])
    assert not close(seeds[noised], one[noised]) and close(seeds[clean], one[clean])


@pytest.mark.parametrize(
    ("given", "wanted", "said"),
    [
        ({}, Wanted((1.0,), (1,)), "levels: 1 given, expected numbers from 0 to below 1"),
        ({}, Wanted((float("nan"),), (1,)), "levels: nan given"),
        ({}, Wanted((), (1,)), "levels: none given"),
        ({}, Wanted((0.301, 0.302), (1,)), "two have one name"),
        ({}, Wanted((0.3,), (3,)), "blocks: 3 given, expected some of 1 to 2"),
        ({}, Wanted((0.3,), (0,)), "blocks: 0 given"),
        ({}, Wanted((0.3,), (1, 1)), "blocks: 1,1: two have one name"),
        ({"kind": "unet"}, Wanted((0.3,), (1,)), "this model is a unet"),
        ({"drop": 0.0}, Wanted((0.3,), (1,)), "knows no image of which nothing is told"),
        ({"path": "variance_preserving"}, Wanted((0.999,), (1,)), "more noise than this model's path has"),
    ],
)
def test_what_cannot_be_is_one_line(given: dict[str, Any], wanted: Wanted, said: str) -> None:
    with pytest.raises(UserError, match=said):
        activations(made(**given), images(), list("abcdef"), wanted)


def test_a_level_means_the_same_on_all_paths() -> None:
    for kind in ("rectified_flow", "variance_preserving", "edm"):
        path = features.make_path(kind)
        for level in (0.0, 0.2, 0.6):
            t = features.time_of(path, level)
            assert float(path.sigma(t) / (path.alpha(t) + path.sigma(t))) == pytest.approx(level, abs=1e-6)


# ---- of a data set ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of two classes in folders, the same in a table, an .npz file and a tar."""
    rows = []
    for i, pixels in enumerate(images()):
        file = tmp_path / "images" / ("dark" if i % 2 else "light") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        rows.append(f"{file},{file.parent.name},{i // 2},{i / 8}\n")
    (tmp_path / "t.csv").write_text("image,kind,who,x0\n" + "".join(rows))
    np.savez(tmp_path / "a.npz", images=images(), labels=np.arange(6) % 2)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(6):
            (tmp_path / "cls").write_text(str(1 - i % 2))
            tar.add(tmp_path / "images" / ("dark" if i % 2 else "light") / f"{i}.png", f"{i}.png")
            tar.add(tmp_path / "cls", f"{i}.cls")
    (tmp_path / "classes.json").write_text('["dark", "light"]')
    return tmp_path


def call(model: Generator, monkeypatch: pytest.MonkeyPatch, *words: Any) -> str:
    monkeypatch.setattr("pipeline.generate.folder.load_pretrained", lambda *_, **__: model)
    return CliRunner().invoke(command, ["m", *map(str, words)], catch_exceptions=False).output


def test_every_kind_of_data_gives_the_same(model: Generator, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = f"run: {{name: x}}\ndata:\n  source: {{kind: arrays, path: {folder / 'a.npz'}}}\n"
    config += "  split: {val_fraction: 0.5}\nautoencoder: {training: {steps: 1}}\ndiffusion: {training: {steps: 1}}\n"
    (folder / "c.yaml").write_text(config)
    found: dict[str, dict[str, Any]] = {}
    kinds: list[tuple[str, list[str]]] = [
        ("images", []), ("t.csv", ["--label", "kind", "--columns", "who,x0"]), ("a.npz", []), ("a.tar", []),
        ("c.yaml", []),
    ]  # fmt: skip
    for name, more in kinds:
        out = folder / f"{name}.features.npz"
        call(model, monkeypatch, folder / name, "-o", out, "--levels", "0", "--root", folder / "runs", *more)
        with np.load(out) as file:
            found[name] = {key: file[key] for key in file.files}
    for name, one in found.items():
        order = np.argsort([str(key).rpartition("/")[2] for key in one["keys"]])
        assert (one["pixels"][order] == images()).all() and one["t0.00/block1"].shape == (6, 16), name
        assert close(
            one["t0.00/block2"][order], activations(model, images(), "abcdef", Wanted((0.0,), (2,)))["t0.00/block2"]
        )
        expected = ["0", "1"] if name in ("a.npz", "c.yaml") else ["light", "dark"]
        assert one["labels"][order].tolist() == expected * 3, name
    assert found["t.csv"]["column/who"].tolist() == ["0", "0", "1", "1", "2", "2"]
    assert found["t.csv"]["column/x0"].tolist()[1] == "0.125"
    assert set(found["c.yaml"]["split"]) == {"train", "val"} and "split" not in found["a.npz"]


def test_a_killed_call_goes_on_and_another_is_refused(
    model: Generator, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, root = folder / "f.npz", folder / "runs"
    asked = [folder / "images", "-o", out, "--root", root, "--maps", "--blocks", "all"]
    monkeypatch.setitem(features.SLICE, True, 2)
    kept, behind = features._keep, features._behind
    calls: list[int] = []

    def killed(path: Path, arrays: Any, made_by: str) -> None:
        if len(list(path.parent.glob("*.safetensors"))) == 5:
            raise Killed
        kept(path, arrays, made_by)

    def counted(*words: Any) -> Any:
        calls.append(1)
        return behind(*words)

    monkeypatch.setattr(features, "_behind", counted)
    monkeypatch.setattr(features, "_keep", killed)
    with pytest.raises(Killed):
        call(model, monkeypatch, *asked)
    assert not out.exists() and len(calls) == 4
    monkeypatch.setattr(features, "_keep", kept)
    assert "(written)" in call(model, monkeypatch, *asked)
    assert len(calls) == 4 + 9 - 3  # three slices of three levels, of which three were there
    whole = out.read_bytes()
    assert "(there already)" in call(model, monkeypatch, *asked)
    out.unlink()
    call(model, monkeypatch, *asked)
    assert out.read_bytes() == whole and len(calls) == 10
    call(model, monkeypatch, *asked[:2], folder / "g.npz", *asked[3:], "--levels", "0.1,0.2,0.3,0.4")
    assert len(calls) == 13  # the new level alone
    for wrong, said in ((["--seed", "1"], "holds something else"), (["--blocks", "9"], "blocks: 9"),
                        (["--levels", "a"], "--levels a: expected numbers"), (["--label", "kind"], "is no table"),
                        (["--columns", "who"], "--columns who: no image has it"),
                        (["-o", folder / "x.txt"], "name.npz"),
                        (["-o", folder / "a.npz"], "is no file of features")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            call(model, monkeypatch, *asked, *wrong)
    for data, said in (("none", "is not there"), ("classes.json", "is no data"), ("runs", "holds no images")):
        with pytest.raises(UserError, match=said):
            call(model, monkeypatch, folder / data, *asked[1:])
    with pytest.raises(UserError, match=r"s3://no/\*\.tar: tars are read from this machine's disks here"):
        call(model, monkeypatch, "s3://no/*.tar", *asked[1:])
    (folder / "images" / "dark" / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="dark/1: is no image that can be used"):
        call(model, monkeypatch, folder / "images", "-o", folder / "h.npz", "--root", root)
    assert not (folder / "h.npz").exists() and not list(root.rglob("*.tmp"))


def test_an_actor_does_what_this_process_does(model: Generator, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its setup and its items go to other processes, and the model is loaded there."""

    class Sent(Inline):
        def map(self, function: Callable[..., Any], items: Any, threads: int = 1, setup: Any = None, gpus: float = 0):
            sent = pickle.loads(pickle.dumps((function, items, setup)))
            return super().map(sent[0], sent[1], threads, sent[2], gpus)

    monkeypatch.setattr("pipeline.generate.folder.load_pretrained", lambda *_, **__: model)
    data = given_data.data_of(str(folder / "a.tar"), {})
    samples = given_data.listed(data, folder / "cache", None, False)
    outs = [folder / "here.npz", folder / "there.npz"]
    for out, cluster, source in zip(outs, (Inline(), Sent()), (None, ("m", None)), strict=True):
        features.extract(
            model, data, samples, out, Wanted((0.2,), (1,)), root=folder / out.stem, cluster=cluster, source=source
        )
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_a_limit_takes_of_every_class_and_changes_no_split(folder: Path) -> None:
    data = given_data.data_of(str(folder / "t.csv"), {"label": "kind", "image": None})
    data = data.model_copy(update={"split": data.split.model_copy(update={"val_fraction": 0.5})})
    whole = {s.key: s for s in given_data.listed(data, folder / "cache", None, True)}
    some = given_data.listed(data, folder / "cache", 4, True)
    assert len(some) == 4 and {s.label for s in some} == {"dark", "light"}
    assert all(whole[s.key] == s for s in some)
