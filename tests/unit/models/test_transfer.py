"""Weights of a network for one that is told more, or of other classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import transfer
from models.diffusion.denoiser import build_network

SMALL = {"kind": "dit", "width": 16, "depth": 2, "heads": 2, "patch": 2}
CAPTION = {"tokens": 8, "encoder": {"kind": "trained", "width": 8, "depth": 1, "heads": 2}}
AGE = {"age": {"kind": "continuous", "range": [0, 9]}}


def options(
    classes: Any = ("a", "b", "c"), attributes: Any = None, caption: Any = None, channels: int = 2, **maps: int
) -> Any:
    """maps: channels of spatial conditions, by name."""
    condition = {"kind": "class" if classes else "none", "attributes": attributes or {}, "caption": caption}
    condition["spatial"] = {name: {"channels": count} for name, count in maps.items()}
    return {"latent": {"channels": channels}, "condition": condition, "classes": list(classes)}


def network(told: Any, seed: int = 0, **backbone: Any) -> nn.Module:
    """A network with no parameter at zero."""
    condition, tokens = told["condition"], {"tokens": "cross"} if told["condition"]["caption"] else {}
    torch.manual_seed(seed)
    made = build_network(
        {**SMALL, **tokens, **backbone}, condition["kind"], told["latent"]["channels"], 4, len(told["classes"]),
        attributes=condition["attributes"], caption=condition["caption"], spatial=condition["spatial"],
    )  # fmt: skip
    return made


def trained(told: Any, **backbone: Any) -> nn.Module:
    made = network(told, 1, **backbone)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def carried(theirs: Any, ours: Any, known: bool = True) -> tuple[nn.Module, nn.Module, transfer.Carried]:
    """The old network, the new one with its weights, and what was told of it."""
    old, new = trained(theirs), network(ours)
    found = transfer.carry(new, old.state_dict(), ours, theirs if known else None)
    new.load_state_dict(found.weights)
    return old, new, found


def answer(model: nn.Module, condition: dict[str, Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    n = len(next(iter(condition.values()))) if condition else 3
    x, t = torch.randn(n, 2, 4, 4, generator=generator), torch.rand(n, generator=generator)
    with torch.no_grad():
        return model(x, t, condition)


def test_the_same_network_takes_all_bit_for_bit() -> None:
    told = options(attributes=AGE, caption=CAPTION)
    old, _, found = carried(told, told)
    assert all(torch.equal(value, found.weights[name]) for name, value in old.state_dict().items())
    assert found.begun == set() and list(found.lines()) == ["taken: backbone, class, age, caption"]


def test_more_conditions_and_other_classes_change_no_answer_at_first() -> None:
    more = {
        "hat": {"kind": "multi_label", "values": ["x", "y"]},
        "mood": {"kind": "categorical", "values": ["m"]},
        **AGE,
    }
    old, new, found = carried(options(), options("bdca", more, CAPTION))
    told: dict[str, Tensor] = new.null(4)  # type: ignore[operator]
    assert list(told) == ["class", "age", "hat", "mood", "caption"]
    told |= {
        "class": torch.tensor([0, 1, 2, 4]),
        "age": torch.tensor([0.1, 0.5, 0.9, -1]),
        "mood": torch.tensor([0] * 4),
    }
    told["hat"][:2] = 1
    told["caption"][:, 1] = 70
    before = answer(old, {"class": torch.tensor([1, 3, 2, 3])})  # what d was not told then, as it is not told now
    assert torch.equal(answer(new, told), before)
    assert list(found.lines()) == [
        "taken: backbone, class (b c a)",
        "new: attention to the caption, class (d), age, hat, mood, caption",
    ]
    trained_whole = {name for name in new.state_dict() if not name.startswith("backbone.") or ".cross." in name}
    assert found.begun == trained_whole


def test_a_class_that_is_new_among_conditions_begins_as_nothing() -> None:
    old, new, found = carried(options((), AGE), options("ab", AGE))
    age = torch.tensor([0.2, 0.7, -1.0])
    told = {"age": age, "class": torch.tensor([0, 1, 2])}
    assert torch.equal(answer(new, told), answer(old, {"age": age}))
    assert found.new == ["class"] and found.taken == ["backbone", "age"]


def test_labels_go_by_name_too() -> None:
    def labels(*values: str) -> dict[str, Any]:
        return {"hat": {"kind": "multi_label", "values": list(values)}}

    old, new, found = carried(options((), labels("x", "y", "z")), options((), labels("z", "w", "x")))
    now = torch.tensor([[1.0, 1, 0], [0, 0, 1], [-1, -1, -1]])  # z and the new w; x; not told
    before = torch.tensor([[0.0, 0, 1], [1, 0, 0], [-1, -1, -1]])
    torch.testing.assert_close(answer(new, {"hat": now}), answer(old, {"hat": before}), rtol=0, atol=1e-6)
    assert found.new == ["hat (w)"] and found.left == ["hat (y)"]
    assert found.begun == {"conditioner.parts.of_hat.table.weight"}


def test_what_is_told_no_more_is_left_by_name() -> None:
    _, _, found = carried(options("ab", AGE, CAPTION), options("a"))
    assert found.left == ["attention to the caption", "class (b)", "age", "caption"] and not found.new


BESIDE = "backbone.embed_beside.weight"


@pytest.mark.parametrize(
    ("ours", "known", "taken"),
    [
        (options(mask=1), True, True),
        (options(mask=1), False, True),
        (options(depth=1), True, False),
        (options(mask=3), True, False),
        (options(mask=3), False, False),
    ],
)
def test_channels_of_other_maps_are_new(ours: Any, known: bool, taken: bool) -> None:
    old, new, found = carried(options(mask=1), ours, known)
    beside = new.state_dict()[BESIDE]
    assert torch.equal(beside, old.state_dict()[BESIDE]) if taken else not beside.any()
    assert found.begun == (set() if taken else {BESIDE})
    assert found.new == found.left == ([] if taken else ["channels beside the latents"])


def test_a_caption_of_another_frozen_encoder_is_refused_though_its_shapes_fit() -> None:
    encoder = {"kind": "minilm", "width": 8}
    here, there = ({"tokens": 8, "encoder": {**encoder, "digest": digest}} for digest in "ab")
    with pytest.raises(ValueError, match="read by another encoder"):
        transfer.carry(network(options()), {}, options(caption=here), options(caption=there))


def test_without_names_rows_go_by_number_where_there_are_as_many() -> None:
    old, new, found = carried(options("abc"), options("xyz"), known=False)
    assert torch.equal(new.state_dict()["conditioner.table.weight"], old.state_dict()["conditioner.table.weight"])
    assert found.begun == set()
    old, new, found = carried(options("abc"), options("xy"), known=False)
    null = old.state_dict()["conditioner.table.weight"][-1]
    assert all(torch.equal(row, null) for row in new.state_dict()["conditioner.table.weight"])
    assert "class (of what is not told)" in found.taken and found.new == ["class (x y)"]


def test_a_number_of_another_range_meant_something_else() -> None:
    _, _, found = carried(options("a", AGE), options("a", {"age": {"kind": "continuous", "range": [0, 99]}}))
    assert found.new == ["age"] and found.left == ["age"]


@pytest.mark.parametrize(
    ("theirs", "ours", "backbone", "words"),
    [
        (options(channels=4), options(), {}, "latents of 4 channels there, of 2 here; .*autoencoder.from"),
        (options(), options(), {"depth": 3}, r"another backbone: backbone.blocks.2.\S+ is not there and \[16\] here"),
        (options(), options(), {"width": 8}, r"another backbone: \S+ is \[16\] there and \[8\] here, and \d+ more"),
        (options(caption=CAPTION), options(caption={**CAPTION, "tokens": 9}), {}, "caption: .* another encoder there"),
    ],
)
def test_what_does_not_fit_is_named(theirs: Any, ours: Any, backbone: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        transfer.carry(network(ours, **backbone), trained(theirs).state_dict(), ours, theirs)
