"""The pool of extractors: the first one stays, another data set or option has another, damage is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts import Artifact, Store
from pipeline.cluster.inline import Inline
from pipeline.config import Config
from pipeline.data import split
from pipeline.errors import UserError
from pipeline.evaluation import extractors, scores
from pipeline.evaluation.metrics import features
from pipeline.schema.stages import Evaluate
from pipeline.stages import ingest


def config(root: Path, **changes: Any) -> Config:
    evaluated = {"samples": 60, "extractor": {"kind": "classifier", "steps": 3}, **changes.pop("evaluate", {})}
    data = {"source": {"kind": "digits"}, "size": 8, "channels": 1, "split": {"val_fraction": 0.2}}
    return Config.model_validate(
        {
            "run": {"name": "digits", "root": str(root)},
            "data": data,
            "autoencoder": {"training": {"steps": 1}},
            "diffusion": {"training": {"steps": 1}},
            "evaluate": evaluated,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    root = tmp_path_factory.mktemp("runs")
    with Store(root).write("ingest", "ingest0", {}, {}) as writer:
        return root, writer.finish(ingest.run(config(root), {}, writer, Inline(), None))


def test_made_once_and_then_found_also_by_another_trainer(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root, data = digits
    made = extractors.extractor_of(config(root), data)
    monkeypatch.setattr(extractors, "make_extractor", None)  # nothing is trained again
    found = extractors.extractor_of(config(root), data)
    assert (found.digest, found.description, found.facts, found.kind) == (
        made.digest, made.description, made.facts, made.kind,
    )  # fmt: skip
    images, _ = split.load_split(data.path, "val", config(root), 0, 7)
    assert len(images) == 7
    assert np.array_equal(found(images), made(images)) and np.array_equal(found.classify(images), made.classify(images))
    assert [path.suffix for path in (root / "extractors").iterdir()] == [".safetensors"]


def test_the_first_one_stays(digits: Any, tmp_path: Path) -> None:
    root, data = digits
    first = extractors.extractor_of(config(root), data)
    path = extractors.pool_path(config(root), data)
    other = features.random_network(np.zeros((1, 8, 8, 1), np.uint8), "a test")
    assert path and extractors.keep(other, path, features.load).digest == first.digest
    assert extractors.keep(other, tmp_path / "new" / "a.safetensors", features.load).digest == other.digest


def test_what_decides_on_the_extractor_is_in_its_name(digits: Any) -> None:
    root, data = digits
    plain = extractors.pool_path(config(root), data)
    same = [{"bootstrap": 7}, {"guidance": 3.0}, {"steps": 3}]
    other = [{"samples": 50}, {"seed": 1}, {"extractor": {"kind": "classifier", "steps": 4}}]
    for change in same:
        assert extractors.pool_path(config(root, evaluate=change), data) == plain
    paths = [extractors.pool_path(config(root, evaluate=change), data) for change in other]
    assert len({plain, *paths}) == 4


def test_damage_is_named(digits: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    features.random_network(np.zeros((1, 8, 8, 1), np.uint8), "a test").save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="not those of its digest"):
        features.load(path)
    path.write_bytes(bytes(content[:-10]))
    with pytest.raises(UserError, match="not a whole extractor"):
        features.load(path)


def test_a_file_with_another_digest_is_refused(digits: Any, tmp_path: Path) -> None:
    root, data = digits
    path = tmp_path / "weights.pt"
    path.write_bytes(b"x")
    chosen = {"kind": "torchscript", "path": str(path), "digest": "0" * 8}
    with pytest.raises(UserError, match="does not begin with 00000000"):
        extractors.extractor_of(config(root, evaluate={"extractor": chosen}), data)
    with pytest.raises(ValueError, match="leave it out"):
        config(root, evaluate={"extractor": {"kind": "classifier", "digest": "0" * 8}})


def test_as_many_are_compared_as_there_are(digits: Any) -> None:
    root, data = digits
    assert extractors.compared(config(root), data) == 60
    held_out = len(split.split_order(data.path, "val", config(root), 0)[0])
    assert extractors.compared(config(root, evaluate={"samples": 9999}), data) == held_out


@pytest.mark.parametrize(
    ("train", "held_out", "classes", "reason"),
    [
        ([0, 1], [1], 2, None),
        ([0, 0, -1], [1], 2, "of 2 classes only 1 is among the 3 images that train it"),  # the other's one is held out
        ([-1, -1], [0], 2, "of 2 classes none is among the 2 images that train it"),
        ([0, 0], [0], 1, "all images are of one class"),
        ([-1], [-1], 0, "the images have no classes"),
        ([0, 1], [-1], 2, "no held-out image has a class"),
    ],
)
def test_why_no_classifier_is_trained_is_said(
    train: list[int], held_out: list[int], classes: int, reason: str | None
) -> None:
    assert extractors.why_no_classifier(np.array(train), np.array(held_out), classes) == reason


def test_the_report_says_why_there_is_no_classifier() -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
    options = Evaluate.model_validate({"samples": 4})
    made = extractors.make_extractor(options, images, np.zeros(12, int), images[:3], np.array([0, 0, 1]), 2)
    report = scores.Report({}, {}, {}, made)
    scores.classify(np.zeros(4, int), ["a", "b"], {}, {}, np.zeros(3, int), report)
    assert report.missing["class_accuracy"] == (
        "no classifier could be trained, since of 2 classes only 1 is among the 12 images that train it"
    )
