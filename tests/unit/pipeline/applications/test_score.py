"""A folder of images against a data set: classes, sizes, counts, and the same conditions as an evaluation here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.applications import score
from pipeline.artifacts import Artifact, Store
from pipeline.cluster.inline import Inline
from pipeline.config import Config
from pipeline.data.split import load_split
from pipeline.errors import UserError
from pipeline.evaluation import scores
from pipeline.files import read_json, write_json
from pipeline.past import comparable
from pipeline.stages import ingest


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Artifact]:
    root = tmp_path_factory.mktemp("runs")
    config = Config.model_validate(
        {
            "run": {"name": "digits", "root": str(root)},
            "data": {"source": {"kind": "digits"}, "size": 16, "channels": 1, "split": {"val_fraction": 0.2}},
            "autoencoder": {"training": {"steps": 1}},
            "diffusion": {"training": {"steps": 1}},
            "evaluate": {"samples": 80, "bootstrap": 5, "extractor": {"kind": "classifier", "steps": 100}},
        }
    )
    from pipeline import artifacts

    fingerprint = artifacts.fingerprint("ingest", ingest.recipe(config, root), {})
    with Store(root).write("ingest", fingerprint, {}, {}) as writer:
        return config, writer.finish(ingest.run(config, {}, writer, Inline(), None))


@pytest.fixture(scope="module")
def folder(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety training images that the baseline does not use, in subfolders named as their classes."""
    config, data = digits
    images, labels = load_split(data.path, "train", config, config.evaluate.seed, 200)
    made = tmp_path_factory.mktemp("images")
    for i in range(100, 190):
        (made / str(labels[i])).mkdir(exist_ok=True)
        Image.fromarray(images[i, :, :, 0]).save(made / str(labels[i]) / f"{i}.png")
    return made


def test_real_images_score_as_real_images_and_are_found_to_be_copies(digits: Any, folder: Path, tmp_path: Path) -> None:
    config, _ = digits
    values = score.score(folder, config, out=tmp_path / "report.json")
    assert values["images"]["compared"] == 80 and values["images"]["samples"] == 80
    figures = values["key_figures"]
    assert figures["fd"] < 2 * figures["fd_real"]
    assert figures["class_accuracy"] > 0.8 and figures["precision"] > 0.5
    assert values["neighbours"]["pixels"]["sample_median"] == 0
    assert read_json(tmp_path / "report.json")["key_figures"] == figures
    assert "reconstructions" not in values["frechet"] and values["verdict"] is None
    text = score.text(values)
    assert "kernel distance" in text and "in their class (held-out images" in text
    with pytest.raises(UserError, match="exists; give a new file"):
        score.score(folder, config, out=tmp_path / "report.json")


def test_the_figures_may_stand_beside_those_of_an_evaluation_here(digits: Any, folder: Path) -> None:
    """The same images given by a generator: the same conditions, and the same distance to the last digit."""
    config, data = digits
    values = score.score(folder, config)
    files, _ = score.listing(folder, data.summary["classes"])
    order = np.random.Generator(np.random.Philox(config.evaluate.seed)).permutation(len(files))[:80]
    images = score.read(folder, [files[i] for i in order], config, False)

    class Known:
        classes, about, values, sound = data.summary["classes"], {"name": "known"}, None, None

        def request(self, classes, n, seed, guidance, **how):
            return {"classes": classes, "guidance": guidance}

        def sample(self, classes, guidance):
            return images

        def encode(self, images, batch_size):
            return images

        def decode(self, latents, batch_size):
            return latents // 2 * 2

    from pipeline.evaluation.extractors import extractor_of

    splits = [load_split(data.path, split, config, config.evaluate.seed) for split in ("train", "val")]
    report = scores.evaluate(Known(), *splits[0], *splits[1], config.evaluate, extractor_of(config, data)).values
    comparable.check({"here": comparable.conditions(report), "folder": comparable.conditions(values)})
    for kind in ("frechet", "kernel", "manifold"):
        assert report[kind]["samples"] == values[kind]["samples"]
        assert report[kind]["real"] == values[kind]["real"]


def test_another_size_is_refused_or_resized(digits: Any, folder: Path, tmp_path: Path) -> None:
    config, _ = digits
    Image.new("RGB", (40, 32), (255, 255, 255)).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"40x32 pixels.*two resolutions.*--resize"):
        score.read(tmp_path, ["a.jpg"], config, False)
    image = score.read(tmp_path, ["a.jpg"], config, True)
    assert image.shape == (1, 16, 16, 1) and image.min() > 250
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b\.png: cannot be used"):
        score.read(tmp_path, ["b.png"], config, True)


def test_too_few_images_are_refused(digits: Any, tmp_path: Path) -> None:
    config, _ = digits
    with pytest.raises(UserError, match="holds no images"):
        score.score(tmp_path, config)
    with pytest.raises(UserError, match="not a folder"):
        score.score(tmp_path / "missing", config)
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"1 image, and 80 are compared; give as many \(50 at least"):
        score.score(tmp_path, config)
    for i in range(50):
        Image.new("L", (16, 16)).save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match=r"51 images, and 80 are compared.*evaluate\.samples=51"):
        score.score(tmp_path, config)


def test_listing(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "a/3.webp", "other/4.png", "5.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    files, labels = score.listing(tmp_path, ["a", "b"])
    assert files == ["5.png", "a/3.webp", "b/1.jpg", "b/2.PNG", "other/4.png"]
    assert labels.tolist() == [-1, 0, 1, 1, -1]
    entries = [{"file": "000000.png", "class": 1}, {"file": "000001.png", "class": None}]
    write_json(tmp_path / "samples.json", {"images": entries})
    files, labels = score.listing(tmp_path, ["a", "b"])
    assert files == ["000000.png", "000001.png"] and labels.tolist() == [1, -1]
