"""What a model is told: checked in one line each, and the tensors that come of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import UserError
from pipeline.generate import told

OPTIONS: dict[str, Any] = {
    "classes": ["a", "b"],
    "condition": {
        "kind": "class",
        "drop": 0.1,
        "attributes": {
            "mood": {"kind": "categorical", "column": "feeling", "values": ["glad", "sad"]},
            "age": {"kind": "continuous", "range": [0.0, 10.0]},
            "worn": {"kind": "multi_label", "values": ["hat", "scarf"]},
        },
        "caption": {"tokens": 8, "encoder": {"kind": "trained"}},
        "spatial": {"mask": {"channels": 1, "side": 4, "background": [255, 255, 255]}},
    },
}
CLASSES_ONLY: dict[str, Any] = {"classes": ["a"], "condition": {"kind": "class", "drop": 0.1}}
CPU = torch.device("cpu")


def test_values_are_taken_in_turn_and_what_is_not_given_is_not_told() -> None:
    request = told.checked(OPTIONS, prompts=["one", "two"], attributes={"mood": ["sad", None, "glad"], "worn": ["hat"]})
    assert told.count(request) == 3
    rows, null = told.conditions(OPTIONS, {**request, "classes": [0]}, range(4), CPU)
    assert rows["mood"].tolist() == [1, 2, 0, 1] and rows["class"].tolist() == [0, 0, 0, 0]
    assert rows["age"].tolist() == [-1] * 4 and rows["worn"].tolist() == [[1, 0]] * 4
    assert torch.equal(rows["caption"][0], rows["caption"][2]) and not torch.equal(
        rows["caption"][0], rows["caption"][1]
    )
    assert {name: tuple(value.shape[1:]) for name, value in rows.items()} == {
        name: tuple(value.shape[1:]) for name, value in null.items()
    }
    assert null["class"].tolist() == [2] and null["mood"].tolist() == [2]


def test_a_negative_prompt_stands_in_the_null() -> None:
    plain = told.conditions(OPTIONS, {"classes": []}, range(1), CPU)
    assert plain[0]["class"].tolist() == [2] and torch.equal(plain[0]["caption"], plain[1]["caption"])
    rows, null = told.conditions(OPTIONS, {"classes": [], **told.checked(OPTIONS, negative="dark")}, range(1), CPU)
    assert torch.equal(rows["caption"], plain[0]["caption"]) and not torch.equal(null["caption"], rows["caption"])


def test_several_negative_prompts_are_taken_in_turn() -> None:
    given = told.checked(OPTIONS, prompts="a", negative=["dark", ""])
    _, null = told.conditions(OPTIONS, {"classes": [], **given}, range(2, 5), CPU)
    one = [told.conditions(OPTIONS, {"classes": [], "negative": text}, range(1), CPU)[1] for text in ("dark", "")]
    assert torch.equal(null["caption"], torch.cat([one[i]["caption"] for i in (0, 1, 0)])) and len(null["mood"]) == 1


def test_labels_of_one_image_or_of_each() -> None:
    assert told.checked(OPTIONS, attributes={"worn": ["hat", "scarf"]})["attributes"] == {"worn": [["hat", "scarf"]]}
    each = told.checked(OPTIONS, attributes={"worn": [["hat"], [], None]})
    rows = told.conditions(OPTIONS, {"classes": [], **each}, range(3), CPU)[0]
    assert rows["worn"].tolist() == [[1, 0], [0, 0], [-1, -1]]


def test_a_map_may_be_a_file_a_picture_or_an_array_and_comes_back(tmp_path: Path) -> None:
    pixels = np.zeros((8, 12), np.uint8)  # as of a wide picture: columns 2 to 9 are its middle square
    pixels[:, 2:6] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    left = np.full((4, 4), -1, np.float32)
    left[:, :2] = np.float32(200) / 127.5 - 1
    several = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels, pixels / 255, None]
    request = told.checked(OPTIONS, maps={"mask": several})
    assert told.count(request) == 6 and json.loads(json.dumps(request)) == request
    assert told.checked(OPTIONS, **request) == request
    rows, null = told.conditions(OPTIONS, {"classes": [], **request}, range(7), CPU)
    for i in (0, 1, 2, 3, 4, 6):
        assert np.allclose(rows["mask"][i, 0], left) and (rows["mask"][i, 1] == 1).all(), i
    assert not rows["mask"][5].any() and null["mask"].shape == (1, 2, 4, 4) and not null["mask"].any()
    assert told.part(request, [6, 5]) == {"maps": {"mask": [request["maps"]["mask"][0], None]}}
    assert "mask" in told.names(OPTIONS) and told.checked(OPTIONS, maps={"mask": pixels}, scales={"mask": 2})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere.png", "map: mask: nowhere.png: No such file or directory; give a picture's path"),
        (np.zeros((2, 2, 2)), r"map: mask: an array of shape \[2, 2, 2\]"),
        (np.full((2, 2), 7.0), "map: mask: an array of float64; expected bytes, booleans, or numbers from 0 to 1"),
        ("data:image/png;base64,AAAA", "map: mask: a picture: undecodable"),
        ("data:image/png;base64,?", "map: mask: a packed map that is not whole"),
        ([], "map: mask: no picture given"),
    ],
)
def test_what_is_no_picture_is_one_line(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        told.checked(OPTIONS, maps={"mask": value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        (CLASSES_ONLY, {"prompts": "a cat"}, "prompt: this model was trained without captions"),
        (CLASSES_ONLY, {"attributes": {"age": 1}}, "set: no attribute 'age'; this model knows no attributes"),
        (OPTIONS, {"prompts": "x" * 100_000}, "prompt: a prompt of 100,000 bytes"),
        (OPTIONS, {"negative": "x" * 9}, "prompt: a prompt of 9 bytes"),
        (OPTIONS, {"attributes": {"aeg": 1}}, "no attribute 'aeg'; did you mean 'age'"),
        (OPTIONS, {"attributes": {"age": 11}}, "age: 11 is not in the range from 0 to 10"),
        (OPTIONS, {"attributes": {"mood": "sat"}}, "mood: no value 'sat'; did you mean 'sad'"),
        (OPTIONS, {"maps": {"msk": "a.png"}}, "map: no spatial condition 'msk'; did you mean 'mask'"),
        (CLASSES_ONLY, {"maps": {"mask": "a.png"}}, "map: no spatial .*; this model knows no pictures"),
        (OPTIONS, {"scales": {"prompt": 2.0}}, "scale: no condition 'prompt'; .*caption"),
        (OPTIONS, {"scales": {"caption": float("nan")}}, "scale: caption=nan"),
    ],
)
def test_what_the_model_does_not_know_is_one_line(options: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        told.checked(options, **given)
    assert "\n" not in str(error.value)


def test_what_samples_of_the_data_set_are_told() -> None:
    metas = [{"feeling": "sad", "age": "3", "caption": "much too long"}, {"worn": "hat", "caption": None}]
    found = told.of_samples(OPTIONS, metas)
    assert found == {
        "attributes": {"mood": ["sad", None], "age": [3.0, None], "worn": [None, ["hat"]]},
        "prompts": ["much to", ""],
    }
    told.checked(OPTIONS, **found)
    assert told.part(found, [1, 2])["prompts"] == ["", "much to"]
    assert told.words(found, 2) == ["much to; mood: sad; age: 3", "worn: hat"]
    assert told.of_samples(CLASSES_ONLY, metas) == {} and told.words({}, 2) == []


def test_prompts_of_a_frozen_encoder_that_are_at_hand_are_not_read_again() -> None:
    import numpy as np

    from pipeline.data.caption_shards import packed
    from pipeline.data.text_encoders import Embedding

    def embedding(length: int) -> Embedding:
        return Embedding(np.full((length, 4), length, np.float16), np.full(4, length, np.float16))

    encoder = {"kind": "transformers", "path": "nowhere", "digest": "ab", "width": 4}
    caption = {"tokens": 8, "encoder": encoder, "empty": packed(embedding(2))}
    options = {"classes": [], "condition": {"kind": "none", "drop": 0.1, "caption": caption}}
    request = told.checked(options, prompts=["one", " one\ttwo ", ""], negative="one")
    known = {"one": embedding(3), "one two": embedding(5)}
    rows, null = told.conditions(options, request, range(4), CPU, known)
    assert rows["caption/length"].tolist() == [3, 5, 2, 3] and null["caption/length"].tolist() == [3]
    assert rows["caption"].shape == (4, 8, 4) and rows["caption/pooled"][:, 0].tolist() == [3, 5, 2, 3]
    assert told.read(options, request, CPU, {**known, "other": embedding(1)}) == known
    literal = told.checked(options, prompts=["one"], negative="one AND two")  # a negative prompt has no pieces
    assert set(told.read(options, literal, CPU, {**known, "one AND two": embedding(4)})) == {"one", "one AND two"}
    with pytest.raises(UserError, match=r"text encoder nowhere: no config.json there"):
        told.read(options, told.checked(options, prompts=["one AND new"]), CPU, known)


def test_prompts_that_are_none_are_not_told_and_what_is_no_text_is_refused() -> None:
    assert told.checked(OPTIONS, prompts=["one", None])["prompts"] == ["one", ""]  # type: ignore[list-item]
    with pytest.raises(UserError, match="prompt: 3: expected a text"):
        told.checked(OPTIONS, prompts=["one", 3])  # type: ignore[list-item]


def test_a_batch_of_a_request_is_the_same_rows_of_it() -> None:
    request = told.checked(
        OPTIONS, prompts=["one AND two", "three"], negative=["x", "y", "z"], attributes={"age": [1, None, 3]}
    )
    request["classes"] = [0, 1]
    (whole, more), null = told.composed(OPTIONS, request, range(12), CPU)
    rows = range(5, 9)
    (part, extra), own = told.composed(OPTIONS, told.of_rows(request, rows), range(4), CPU)
    for name, values in whole.items():
        assert torch.equal(values[5:9], part[name]) and torch.equal(more[name][5:9], extra[name])
    assert torch.equal(null["caption"][5:9], own["caption"])
