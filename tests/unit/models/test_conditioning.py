"""Conditioners and their null; captions that do not depend on their neighbours."""

from __future__ import annotations

import pytest
import torch

from models import conditioning


def test_class_condition_has_a_row_more_for_null():
    conditioner = conditioning.build("class", 6, classes=10)
    null = conditioner.null(2)
    assert null["class"].tolist() == [10, 10] and null["class"].dtype == torch.int64
    embedded = conditioner({"class": torch.tensor([0, 10])}, torch.zeros(2, 1))
    assert embedded.vector.shape == (2, 6) and embedded.tokens is None
    assert not torch.equal(embedded.vector[0], embedded.vector[1])
    with pytest.raises(IndexError):
        conditioner({"class": torch.tensor([11])}, torch.zeros(1, 1))


def test_no_condition_is_zero():
    conditioner = conditioning.build("none", 6)
    assert conditioner.null(3) == {}
    assert torch.equal(conditioner({}, torch.ones(3, 4)).vector, torch.zeros(3, 6))
    assert not list(conditioner.parameters())


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"condition\.kind"):
        conditioning.build("text", 6)
    with pytest.raises(ValueError, match="classes"):
        conditioning.build("class", 6)


ATTRIBUTES = {
    "mood": {"kind": "categorical", "values": ["happy", "sad"]},
    "age": {"kind": "continuous"},
    "worn": {"kind": "multi_label", "values": ["hat", "glasses", "beard"]},
}
CAPTION = {"tokens": 12, "encoder": {"kind": "trained", "width": 16, "depth": 2, "heads": 2}}


def symbols(text: str, length: int = 12) -> list[int]:
    told = [257, *(byte + 1 for byte in text.encode())]
    return told + [0] * (length - len(told))


def filled(**options):
    """A conditioner whose zero layers are filled, and a batch of two for it."""
    torch.manual_seed(0)
    conditioner = conditioning.build(width=8, **options)
    for parameter in conditioner.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter)
    batch = {
        "class": torch.tensor([1, 2]),
        "mood": torch.tensor([0, 1]),
        "age": torch.tensor([0.25, 1.0]),
        "worn": torch.tensor([[1.0, 0, 1], [0, 0, 0]]),
        "caption": torch.tensor([symbols("a hat"), symbols("hi")]),
    }
    return conditioner, batch


def test_all_conditions_side_by_side_and_each_with_a_null_of_its_own():
    conditioner, batch = filled(kind="class", classes=3, attributes=ATTRIBUTES, caption=CAPTION)
    null = conditioner.null(2)
    assert set(null) == set(batch)
    x = torch.zeros(2, 1)
    told = conditioner(batch, x)
    assert told.vector.shape == (2, 8) and told.tokens.shape == (2, 12, 8) and told.mask.sum(1).tolist() == [6, 3]
    for name in batch:
        one = conditioner({**batch, name: null[name]}, x)
        assert not torch.allclose(one.vector, told.vector), name
        assert null[name].shape == batch[name].shape and null[name].dtype == batch[name].dtype
    bare, untold = ({**batch, "worn": worn} for worn in (torch.zeros(2, 3), null["worn"]))
    assert not torch.allclose(conditioner(bare, x).vector, conditioner(untold, x).vector)  # no labels is told


def test_the_class_alone_is_what_it_was():
    assert isinstance(conditioning.build("class", 8, 3), type(conditioning.build("class", 8, 3, {}, None)))
    assert list(conditioning.build("class", 8, 3).state_dict()) == ["table.weight"]


@pytest.mark.parametrize("name", ["type", "keys", "half", "training"])
def test_an_attribute_may_bear_the_name_of_a_method(name):
    conditioner = conditioning.build("none", 8, attributes={name: {"kind": "continuous"}})
    assert conditioner({name: torch.tensor([0.5])}, torch.zeros(1, 1)).vector.shape == (1, 8)


def test_what_is_new_begins_as_no_condition():
    conditioner = conditioning.build("none", 8, attributes=ATTRIBUTES, caption=CAPTION)
    _, batch = filled(kind="none", attributes=ATTRIBUTES, caption=CAPTION)
    assert not conditioner(batch, torch.zeros(2, 1)).vector.any()


def test_the_parts_do_not_depend_on_the_order_in_which_they_are_given():
    made = []
    for names in (list(ATTRIBUTES), list(reversed(ATTRIBUTES))):
        torch.manual_seed(0)
        made.append(conditioning.build("class", 8, 3, {name: ATTRIBUTES[name] for name in names}, CAPTION).state_dict())
    assert list(made[0]) == list(made[1]) and all(torch.equal(made[0][key], made[1][key]) for key in made[0])


def test_a_caption_does_not_depend_on_its_neighbours():
    conditioner, _ = filled(kind="none", caption={**CAPTION, "tokens": 64})
    short = torch.tensor([symbols("hi", 4)])
    alone = conditioner({"caption": short}, torch.zeros(1, 1))
    long = torch.tensor([symbols("hi", 64), symbols("x" * 60, 64)])
    together = conditioner({"caption": long}, torch.zeros(2, 1))
    torch.testing.assert_close(together.vector[0], alone.vector[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(together.tokens[0, :3], alone.tokens[0, :3], rtol=0, atol=1e-5)
    assert together.mask[0].tolist() == [True] * 3 + [False] * 61


def test_a_caption_that_was_embedded_before_does_not_depend_on_what_fills_it_up() -> None:
    from models.conditioning.text import LENGTH, POOLED

    torch.manual_seed(0)
    module = conditioning.build("none", 8, caption={"tokens": 6, "encoder": {"kind": "minilm", "width": 4}})
    tokens, pooled = torch.randn(2, 6, 4).half(), torch.randn(2, 4).half()
    condition = {"caption": tokens, POOLED: pooled, LENGTH: torch.tensor([3, 6])}
    found = module(condition, torch.zeros(2, 1))
    assert found.mask is not None and found.mask.tolist() == [[True] * 3 + [False] * 3, [True] * 6]
    assert found.tokens is not None and found.tokens.dtype == torch.float32 and not found.vector.any()  # begins as none
    alone = module({"caption": tokens[:1, :3], POOLED: pooled[:1], LENGTH: torch.tensor([3])}, torch.zeros(1, 1))
    torch.testing.assert_close(alone.tokens, found.tokens[:1, :3])
    assert set(module.null(2)) == {"caption", POOLED, LENGTH}


def test_maps_lie_behind_each_other_by_name_and_say_where_they_are_told():
    spatial = {"mask": {"channels": 1}, "edge": {"channels": 2}}
    conditioner = conditioning.build("class", 8, 3, spatial=spatial)
    x = torch.zeros(2, 4, 3, 5)
    batch = {"class": torch.tensor([0, 3]), "mask": torch.rand(2, 2, 3, 5), "edge": torch.randn(2, 3, 3, 5)}
    batch["mask"][:, -1], batch["edge"][:, -1] = 1.0, torch.tensor([1.0, 0.0])[:, None, None]
    told = conditioner(batch, x)
    assert conditioning.beside(spatial) == 5 and told.channels.shape == (2, 5, 3, 5)
    assert torch.equal(told.channels[0], torch.cat([batch["edge"][0], batch["mask"][0]]))
    assert not told.channels[1, :3].any() and torch.equal(told.channels[1, 3:], batch["mask"][1])
    assert torch.equal(told.vector, conditioner.parts["of_class"](batch, x).vector)
    null = conditioner.null(2)
    assert set(null) == set(batch) and not conditioner(null, x).channels.any()
    assert conditioner({**null, "mask": torch.zeros(2, 2, 3, 5).index_fill_(1, torch.tensor(1), 1)}, x).channels.any()


def test_maps_that_do_not_fit():
    with pytest.raises(ValueError, match=r"'mask' is the name of another condition"):
        conditioning.build("none", 8, attributes={"mask": {"kind": "continuous"}}, spatial={"mask": {"channels": 1}})
    with pytest.raises(ValueError, match=r"mask\.channels"):
        conditioning.build("none", 8, spatial={"mask": {"channels": 0}})
    with pytest.raises(ValueError, match="mask: expected 1 channels and one more, got 3"):
        conditioning.build("none", 8, spatial={"mask": {"channels": 1}})(
            {"mask": torch.zeros(1, 3, 2, 2)}, torch.zeros(1, 1, 2, 2)
        )
