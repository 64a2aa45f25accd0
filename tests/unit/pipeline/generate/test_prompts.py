"""Prompts of several pieces: how they are read, the terms that they are, and what a request with them gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.conditioning import Conditions
from models.diffusion.guidance import composed
from pipeline.errors import UserError
from pipeline.generate import prompts, sampling, told
from pipeline.generate.generator import Generator
from tests.unit.pipeline.generate.test_generate import small

CONDITION: dict[str, Any] = {
    "kind": "class",
    "drop": 0.1,
    "attributes": {"age": {"kind": "continuous", "range": [0.0, 1.0]}},
    "caption": {"tokens": 16, "encoder": {"kind": "trained", "width": 16, "depth": 1, "heads": 2}},
}


@pytest.mark.parametrize(
    ("prompt", "found", "held"),
    [
        ("a hat", ["a hat"], "a hat"),
        ("a hat and a coat", ["a hat and a coat"], "a hat and a coat"),
        (" a  AND b\tAND c ", ["a", "b", "c"], ["a", "b", "c"]),
        ("BRAND NEW", ["BRAND NEW"], "BRAND NEW"),
        ("AND b", ["AND b"], "AND b"),
        ("a AND AND", ["a", "AND"], ["a", "AND"]),
        ("", [""], ""),
        (["A AND B"], ["A AND B"], ["A AND B"]),  # one piece, and not two
        (["a", "b"], ["a", "b"], ["a", "b"]),
    ],
)
def test_a_prompt_comes_back_as_the_same_pieces(prompt: Any, found: list[str], held: Any) -> None:
    assert prompts.pieces(prompt) == found and prompts.kept(found) == held
    assert prompts.pieces(held) == found


def additive(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
    """A denoiser whose answer is no sum over the conditions."""
    return (1 + condition["caption"]) * (2 + condition["age"]) * torch.ones_like(x)


@pytest.mark.parametrize("scales", [{}, {"caption": 3.0}, {"age": 0.5}])
def test_pieces_are_a_term_each_and_what_is_beside_them_counts_once(scales: dict[str, float]) -> None:
    null = {"caption": torch.tensor([0.0]), "age": torch.tensor([0.0])}
    told_of = [{"caption": torch.tensor([p]), "age": torch.tensor([5.0])} for p in (1.0, 10.0)]
    x = torch.zeros(1)

    def at(caption: float, age: float) -> float:
        return (1 + caption) * (2 + age)

    found = composed(additive, sampling._terms(scales, 2.0, told_of, null), null)(x, x, told_of[0])
    nothing, s = at(0, 0), scales.get("caption", 2.0)
    if scales:  # each by itself
        expected = nothing + s * (at(1, 0) + at(10, 0) - 2 * nothing) + scales.get("age", 2.0) * (at(0, 5) - nothing)
    else:  # together with the age, which counts once
        expected = nothing + 2 * (at(0, 5) - nothing) + 2 * (at(1, 5) + at(10, 5) - 2 * at(0, 5))
    assert found.item() == pytest.approx(expected)


@pytest.fixture(scope="module")
def model() -> Generator:
    backbone = {"kind": "dit", "width": 24, "depth": 1, "heads": 2, "patch": 1, "tokens": "cross"}
    of = small(condition=CONDITION, backbone=backbone)
    with torch.no_grad():  # a caption changes more than a byte of a pixel
        of.network.conditioner.parts["of_caption"].to_vector.weight *= 20  # type: ignore[index,union-attr]
    return of


def test_an_image_does_not_depend_on_how_many_pieces_others_have(model: Generator) -> None:
    """Up to rounding: there are more rows in a batch."""
    given: dict[str, Any] = {"attributes": {"age": 0.5}, "guidance": 2.0, "negative": "c"}
    several = model.sample(prompts=["a", "a AND b", "b AND a", ["a AND b"]], **given).astype(int)
    for i, prompt in enumerate(["a", "a AND b"]):
        alone = model.sample(prompts=[prompt] * (i + 1), **given).astype(int)[i]
        assert np.abs(several[i] - alone).max() <= 1
    assert np.abs(several[1] - model.sample(prompts="b AND a", n=2, **given).astype(int)[1]).max() <= 1
    assert np.abs(several[1] - model.sample(prompts=["a"] * 2, **given).astype(int)[1]).max() > 1
    assert np.abs(several[3] - model.sample(prompts=[["a", "b"]], n=4, **given).astype(int)[3]).max() > 1


def test_a_request_with_pieces_comes_back_and_an_interval_leaves_them_together(model: Generator) -> None:
    request = model.request(prompts=["a AND b", ["A AND B"]], seed=3)
    assert request["prompts"] == [["a", "b"], ["A AND B"]] and model.request(**request) == request
    plain = model.sample(prompts="a AND b", guidance=1.0)
    assert np.array_equal(model.sample(prompts="a AND b", guidance=3.0, guidance_interval=[1e8, 1e9]), plain)
    assert not np.array_equal(model.sample(prompts="a", guidance=1.0), plain)


def test_what_pieces_need_is_said(model: Generator) -> None:
    with pytest.raises(UserError, match="prompt: a prompt of 20 bytes"):
        model.request(prompts="a AND " + "x" * 20)
    model.request(prompts="a" * 12 + " AND " + "b" * 12)  # each piece may be as long as a prompt
    with pytest.raises(UserError, match="prompt: AND: autoguidance has one scale"):
        model.request(prompts="a AND b", guidance_kind="autoguidance", guidance=2.0)
    never = small(condition={**CONDITION, "drop": 0.0}, backbone=model.options["backbone"])
    with pytest.raises(UserError, match=r"prompt: AND needs a model trained with `condition.drop` above 0"):
        never.request(prompts="a AND b")


def test_captions_of_a_data_set_are_one_piece() -> None:
    found = told.of_samples({"condition": CONDITION}, [{"caption": "HAT AND COAT"}, {"caption": "a hat"}])
    assert found["prompts"] == [["HAT AND COAT"], "a hat"]
    assert told.words(found, 2) == ["HAT AND COAT", "a hat"]
