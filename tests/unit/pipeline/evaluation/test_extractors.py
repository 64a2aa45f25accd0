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
from pipeline.evaluation import extractors
from pipeline.evaluation.metrics import features
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
    assert path and extractors.keep(other, path).digest == first.digest
    assert extractors.keep(other, tmp_path / "new" / "a.safetensors").digest == other.digest


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
