"""Tars of samples by a model whose every answer is known (`test_edit.py`), filtered by a judge of real images."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline.applications import given_data, labelled
from pipeline.cluster.inline import Inline
from pipeline.data.index import Index
from pipeline.data.latents import LatentSpace
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.generate.generator import Generator, generator
from pipeline.schema.data import Data
from pipeline.stages import ingest
from tests.unit.pipeline.applications.test_edit import OPTIONS, SIDE, Exact, Pixels, faces

QUICK = ("--per-class", "6", "--judge-steps", "30", "--steps", "5", "--share", "0.8")


@pytest.fixture(scope="module")
def model() -> Generator:
    about = {"name": "exact", "weights": {}, "lineage": {"diffusion": {"fingerprint": "f", "content": "0123456789"}}}
    space = LatentSpace(torch.zeros(3), torch.ones(3))
    return generator(OPTIONS, Pixels(), Exact(), space, torch.device("cpu"), {"batch_size": 4}, about)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for label, name in enumerate(OPTIONS["classes"]):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i, face in enumerate(faces(label, 10)):
            Image.fromarray(face).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def augmented(model: Generator, monkeypatch: pytest.MonkeyPatch, *given: str) -> Any:
    from jobs.augment import command

    monkeypatch.setattr("pipeline.generate.folder.load_pretrained", lambda *_, **__: model)
    return CliRunner().invoke(command, ["m", *given], catch_exceptions=False)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tars_go_through_ingest_and_no_generated_sample_is_held_out(
    model: Generator, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = augmented(model, monkeypatch, "data", "-o", "out", "--real", *QUICK)
    assert found.exit_code == 0 and "18 images of 3 classes" in found.output
    out = Path("out")
    with tarfile.open(out / "generated-0000-000.tar") as tar:
        names = tar.getnames()
        assert [name.rpartition(".")[2] for name in names[:3]] == ["png", "cls", "json"] and len(names) == 18
        image, label, about = (tar.extractfile(name) for name in names[:3])
        assert image and label and about and label.read() == b"0"
        said = json.load(about)
        assert np.asarray(Image.open(io.BytesIO(image.read()))).mean() > 150  # happy images are light
    wanted = {"generated": True, "model": "exact", "content": "0123456789", "seed": 0, "class": "happy"}
    assert {key: said[key] for key in wanted} == wanted and 0 <= said["confidence"] <= 1
    assert read_json(out / "classes.json") == sorted(OPTIONS["classes"])
    config = SimpleNamespace(
        run=SimpleNamespace(root="root"),
        data=Data(source={"kind": "webdataset", "path": "out/*.tar"}, size=SIDE, split={"val_fraction": 0.4}),  # type: ignore[arg-type]
    )
    writer = SimpleNamespace(path=Path("in").absolute(), work=Path("in/work").absolute())
    summary = ingest.run(config, {}, writer, Inline(), None)  # type: ignore[arg-type]
    held_out = Index.open(writer.path, "val")
    assert len(held_out) > 5 and not any("generated" in held_out.key(i) for i in range(len(held_out)))
    assert summary["generated"] == 18 and sum(summary["images"].values()) == 48
    assert summary["classes"] == read_json(out / "classes.json")
    train = Index.open(writer.path, "train")
    for i in np.flatnonzero(train.generated()):
        assert train.classes[train.label(int(i))] == train.meta(int(i))["class"]


def test_a_call_that_was_killed_goes_on_and_another_is_refused(
    model: Generator, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("data", "-o", "out", *QUICK)
    augmented(model, monkeypatch, *asked)
    out = Path("out")
    before, manifest = content(out), read_json(out / "manifest.json")
    assert manifest["finished"] and manifest["generated"] is True and len(manifest["shards"]) == 3
    del manifest["shards"]["generated-0001-000"], manifest["finished"]
    write_json(
        out / "manifest.json", manifest
    )  # as if killed before the shard was named, and in the middle of the next
    (out / "generated-0002-000.tar").write_bytes(b"half")
    (out / "grid.png").unlink()
    augmented(model, monkeypatch, *asked)
    assert content(out) == before
    with pytest.raises(UserError, match="holds something else"):
        augmented(model, monkeypatch, *asked, "--seed", "1")
    (out / "manifest.json").write_text("{")
    augmented(model, monkeypatch, *asked)
    assert content(out) == before


def test_what_no_sample_reaches_is_said(model: Generator, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = augmented(model, monkeypatch, "data", "-o", "out", *QUICK, "--least", "1", "--per-class", "2")
    assert "fewer than asked for" in found.output and "happy (0)" in found.output
    assert not list(Path("out").glob("*.tar"))
    augmented(model, monkeypatch, "data", "-o", "all", *QUICK, "--least", "0")
    assert [entry["images"] for entry in read_json("all/manifest.json")["shards"].values()] == [6, 6, 6]


def test_sources_of_all_kinds_are_read_alike(data: Path) -> None:
    shape = (SIDE, SIDE, 3)

    def read(given: str, column: str | None = None, **named: str) -> labelled.Labelled:
        chosen = given_data.data_of(given, named)
        return labelled.read(chosen, given_data.listed(chosen, Path("digests"), None, False), column, shape)

    folder = read("data")
    assert folder.images.shape == (30, *shape) and folder.classes == sorted(OPTIONS["classes"])
    lines = ["picture,mood"] + [f"{key}.png,{value}" for key, value in zip(folder.keys, folder.values, strict=True)]
    Path("data/t.csv").write_text("\n".join(lines) + "\n")
    table = read("data/t.csv", image="picture", label="mood")
    column = read("data/t.csv", "mood", image="picture")
    with tarfile.open("t.tar", "w") as tar:
        for i, image in enumerate(folder.images):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            members = {"png": buffer.getvalue(), "cls": str(folder.classes.index(folder.values[i])).encode()}
            if i % 10 == 9:
                members["json"] = b'{"generated": true}'
            for kind, pixels in members.items():
                info = tarfile.TarInfo(f"{i:03d}.{kind}")
                info.size = len(pixels)
                tar.addfile(info, io.BytesIO(pixels))
    write_json("classes.json", folder.classes)
    tars = read("t.tar")
    assert tars.generated == 3 and len(tars.values) == 27  # what a model made is no real image
    kept = [i for i in range(30) if i % 10 != 9]
    for other, rows in ((table, range(30)), (column, range(30)), (tars, kept)):
        assert other.classes == folder.classes and other.values == [folder.values[i] for i in rows]
        assert np.array_equal(other.images, folder.images[list(rows)])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["none"], "none: is not there; give a folder"),
        (["data/happy"], "no real image with a class"),
        (["data", "--by", "age"], "no attribute"),
        (["few"], "too few images of sad"),
        (["other"], "angry"),
        (["t*.tar"], "no file matches"),
        (["t*.tar", "--real"], "tars already"),
        (["data", "--guidance", "nan"], "guidance: nan"),
        (["data", "--least", "nan"], "least: nan"),
        (["data", "--share", "nan"], "share: nan"),
    ],
)
def test_what_cannot_be_is_one_line(
    model: Generator, data: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], said: str
) -> None:
    for folder, name, label in (("few", "sad", 0), ("few", "happy", 2), ("other", "angry", 0), ("other", "happy", 2)):
        (Path(folder) / name).mkdir(parents=True)
        for i, face in enumerate(faces(label, 3 if name == "sad" else 6)):
            Image.fromarray(face).save(Path(folder) / name / f"{i}.png")
    with pytest.raises(UserError, match=said):
        augmented(model, monkeypatch, "-o", "out", *QUICK, *given)
    assert not Path("out").exists()
