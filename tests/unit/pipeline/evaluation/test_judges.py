"""Judges learn what is to be seen, and nothing else; they are kept, and the same seed gives the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.text_encoders import Embedding
from pipeline.errors import UserError
from pipeline.evaluation import agreement, judges

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 220), "grey": (120, 120, 120)}
NAMES = list(COLOURS)


def squares(count: int, seed: int, unseen: bool = False) -> tuple[Any, list[dict[str, Any]]]:
    """16 px: a square of a colour on the left, one on the right, each one of four; a caption says both. Equal numbers
    of both colours never occur but in `unseen`."""
    random = np.random.Generator(np.random.Philox(seed))
    images, metas = random.integers(200, 256, (count, 16, 16, 3), np.uint8), []
    for image in images:
        left = int(random.integers(4))
        right = left if unseen else (left + int(random.integers(1, 4))) % 4
        image[4:12, 1:7], image[4:12, 9:15] = COLOURS[NAMES[left]], COLOURS[NAMES[right]]
        metas.append({"left": NAMES[left], "right": NAMES[right], "caption": f"{NAMES[left]}, then {NAMES[right]}"})
    return images, metas


@pytest.fixture(scope="module")
def taught() -> Any:
    return squares(800, 0)


@pytest.fixture(scope="module")
def trained(taught: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[agreement.Judges, Path]:
    images, metas = taught
    pool = tmp_path_factory.mktemp("pool")
    columns = agreement.columns_of(["left", "right"], metas, {}, "columns")
    return agreement.train(images, metas, columns, True, pool, 60, 0, False, "captions"), pool


def test_real_images_are_right_and_other_rows_at_chance(trained: Any) -> None:
    for unseen in (False, True):
        images, metas = squares(400, 1, unseen)
        found = agreement.measure(trained[0], images, images, images, metas)
        for name in ("left", "right", "all"):
            assert found["columns"][name]["samples"]["right"] > 0.97, (name, unseen, found)
        assert found["columns"]["left"]["shuffled"]["right"] == pytest.approx(0.25, abs=0.03)
    images, metas = squares(400, 2)
    captions = agreement.measure(trained[0], images, images, images, metas)["captions"]
    assert captions["candidates"] == 12 and captions["samples"]["recall_1"] > 0.9, captions
    assert captions["shuffled"]["recall_1"] == pytest.approx(captions["chance"]["recall_1"], abs=0.03)


def test_images_that_show_something_else_are_wrong(trained: Any) -> None:
    images, metas = squares(100, 3)
    found = agreement.measure(trained[0], images[:, :, ::-1], images, images, metas)  # left is right
    assert found["columns"]["left"]["samples"]["right"] < 0.03 and found["columns"]["left"]["real"]["right"] > 0.97
    figures = agreement.key_figures(found)
    assert figures["agreement/left"] < 0.03 < 0.97 < figures["agreement/left_real"]
    assert "all as told: 0.0% of samples (real images: " in agreement.headline(figures)
    assert any(line.startswith("left: 0.0% as told") for line in agreement.lines(found))


def test_a_judge_trains_once_and_equally(trained: Any, taught: Any, tmp_path: Path) -> None:
    images, metas = taught
    columns = agreement.columns_of(["left", "right"], metas, {}, "columns")
    before = sorted(trained[1].iterdir())
    columns = dict(reversed(columns.items()))
    again = agreement.train(images, metas, columns, True, trained[1], 60, 0, False, "captions")
    assert sorted(trained[1].iterdir()) == before and len(before) == 2
    assert again.judge.digest == trained[0].judge.digest and again.towers.digest == trained[0].towers.digest
    for one in (again, trained[0]):  # from its file, and as it was trained
        found = agreement.measure(one, images, images, images, metas)
        assert found["columns"]["left"]["real"]["right"] > 0.97 and found["columns"]["right"]["real"]["right"] > 0.97
    made = [
        judges.of_columns(
            images[:60], agreement.rows_of(columns, metas[:60]), columns, tmp_path / name, 10, seed, False
        )
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert made[0].digest == made[1].digest != made[2].digest
    damaged = next((tmp_path / "a").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-8])
    with pytest.raises(UserError, match="not a whole judge"):
        judges.load(damaged)


class Reader:
    """In place of a frozen text encoder: which colour is where, as numbers."""

    def __init__(self, encoder: dict[str, Any], limit: int) -> None:
        assert encoder["digest"] == "of its files"

    def __call__(self, texts: list[str]) -> tuple[list[Embedding], int]:
        places = [[float(name == said) for said in text.split(", then ") for name in NAMES] for text in texts]
        return [Embedding(np.zeros((1, 8), np.float16), np.array(row, np.float16)) for row in places], 0


def test_towers_read_by_a_frozen_encoder_which_is_kept_with_them(
    taught: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "Frozen", Reader)
    encoder = {"kind": "transformers", "path": "here", "digest": "of its files", "width": 8}
    images, metas = taught
    captions = [meta["caption"] for meta in metas]
    towers = judges.of_captions(images, captions, tmp_path, 40, 0, False, encoder)
    again = judges.load(next(tmp_path.iterdir()))
    assert again.about["encoder"] == encoder and again.digest == towers.digest
    new, told = squares(200, 2)
    found = agreement.measure(agreement.Judges({}, None, again), new, new, new, told)["captions"]
    assert found["samples"]["recall_1"] > 0.9, found
    assert judges.of_captions(images, captions, tmp_path, 1, 0, False).about.get("encoder") is None
    assert len(list(tmp_path.iterdir())) == 2  # towers of bytes are others


def test_what_is_a_column(taught: Any) -> None:
    metas = [
        {"age": i % 7, "worn": ["hat"] if i % 2 else [], "one": "x", "each": f"v{i}", "__key__": "k"} for i in range(40)
    ]
    known = {"years": {"kind": "continuous", "column": "age", "range": [0, 10]}}
    found = agreement.columns_of(["age", "worn"], metas, known, "columns")
    assert found["age"] == {"kind": "continuous", "column": "age", "range": [0, 10]}
    assert found["worn"]["kind"] == "multi_label" and found["worn"]["values"] == ["hat"]
    for name, words in [
        ("ages", "columns: no image has a value of 'ages'; did you mean 'age'"),
        ("one", "all images have the same value of 'one'"),
        ("each", "'each' has 40 different values in 40 images: too many"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            agreement.columns_of([name], metas, known, "columns")
        assert "\n" not in str(error.value)


def test_rows_that_cannot_be_judged_are_named(taught: Any, tmp_path: Path) -> None:
    images, metas = taught
    columns = agreement.columns_of(["left"], metas, {}, "columns")
    with pytest.raises(UserError, match=r"data\.csv: 7: left: no value 'blu'; did you mean 'blue'"):
        agreement.rows_of(columns, [{"left": "blu", "__key__": "7"}], "data.csv")
    with pytest.raises(UserError, match=r"data\.csv: no row has a value of 'left'; valid: right"):
        agreement.rows_of(columns, [{"right": "blue"}], "data.csv")
    assert agreement.rows_of(columns, [{"left": "blu"}])["left"].tolist() == [4]
    for bare, words in [([{}] * 60, "no image has a caption"), ([{"caption": "a"}] * 60, "all captions are the same")]:
        with pytest.raises(UserError, match=f"here: {words}"):
            agreement.train(images[:60], bare, {}, True, tmp_path, 1, 0, False, "here")
