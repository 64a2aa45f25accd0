"""Where conditions act: by a denoiser that reacts in known places, and by networks that ignore what they are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from models.diffusion.denoiser import build_network, denoiser
from models.diffusion.effects import attention, effects, looking, recorded
from models.diffusion.process import RectifiedFlow

DIT = {"kind": "dit", "width": 24, "depth": 2, "heads": 3, "patch": 2}
UNET = {"kind": "unet", "width": 8, "multipliers": (1, 2), "attention": (True, True), "blocks": 1, "groups": 4,
        "head_width": 8, "tokens": "cross"}  # fmt: skip
X, T = torch.randn(3, 2, 4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0.9, 0.5, 0.1])
TOLD = {"class": torch.tensor([1, 2, 0]), "mood": torch.tensor([1.0, 0.0, 2.0]), "mood/more": torch.tensor([0, 0, 1])}
NULL = {"class": torch.tensor([0]), "mood": torch.tensor([0.0]), "mood/more": torch.tensor([0])}


def denoise(x: Any, t: Any, condition: Any) -> Any:
    """The class moves the two upper rows of the first channel by itself, the mood all but the last two columns of both
    channels by 3 to itself; where a class is told as well, the corner by 10."""
    x0 = x * t[:, None, None, None]
    x0[:, 0, :2] += condition["class"][:, None, None]
    x0[:, :, :, :4] += 3 * (condition["mood"] + condition["mood/more"])[:, None, None, None]
    x0[:, :, -1, -1] += 10 * (condition["class"] * condition["mood"])[:, None]
    return x0


def test_an_effect_lies_where_the_network_reacts_and_is_of_its_size() -> None:
    of_class = torch.zeros(4, 6)
    of_class[:2] = 0.5**0.5  # one of two channels
    found = effects(denoise, X, T, {**TOLD, "mood": torch.zeros(3), "mood/more": torch.zeros(3)}, NULL, ["class"])
    torch.testing.assert_close(found.together, of_class * TOLD["class"][:, None, None])
    assert found.each == {}  # one condition: together says it
    found = effects(denoise, X, T, TOLD, NULL, ["class", "mood"])
    corner = torch.zeros(4, 6)
    corner[-1, -1] = 10.0
    at = TOLD["class"][:, None, None]
    both = at * TOLD["mood"][:, None, None] * corner
    torch.testing.assert_close(found.each["class"], of_class * at + both)
    mood = torch.zeros(4, 6)
    mood[:, :4] = 3.0
    amount = (TOLD["mood"] + TOLD["mood/more"])[:, None, None]  # what belongs to a name goes with it
    torch.testing.assert_close(found.each["mood"], mood * amount + both)
    assert found.together[0, 0, 0] > found.each["class"][0, 0, 0]


@pytest.mark.parametrize("options", [DIT, {**UNET, "tokens": "none"}])
def test_a_network_that_ignores_a_condition_shows_an_effect_of_exactly_zero(options: Any) -> None:
    torch.manual_seed(0)
    network = build_network(options, "class", 2, 8, classes=3).eval()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    plain = denoiser(network, RectifiedFlow(), "velocity")
    x, null = torch.randn(3, 2, 8, 8), {"class": torch.tensor([3])}
    with torch.no_grad():
        assert effects(plain, x, T, {"class": TOLD["class"]}, null, ["class"]).together.min() > 0
        table: Any = network.conditioner.table
        table.weight[:] = table.weight[0].clone()
        assert (effects(plain, x, T, {"class": TOLD["class"]}, null, ["class"]).together == 0).all()


def test_what_is_recorded_is_what_was_asked_and_answered() -> None:
    calls: list[Any] = []
    answer = recorded(denoise, calls)(X, T, TOLD)
    assert torch.equal(answer, denoise(X, T, TOLD)) and len(calls) == 1
    assert calls[0].x is X and calls[0].t is T and calls[0].x0 is answer


@pytest.mark.parametrize("options", [{**DIT, "tokens": "cross"}, {**DIT, "tokens": "joint"}, UNET])
def test_attention_is_a_mean_of_probabilities_without_padding(options: Any) -> None:
    torch.manual_seed(0)
    caption = {"tokens": 5, "encoder": {"kind": "trained", "width": 8, "depth": 1, "heads": 2}}
    network = build_network(options, "none", 2, 8, caption=caption).eval()
    symbols = torch.tensor([[257, 98, 99, 0, 0], [257, 0, 0, 0, 0], [257, 98, 99, 100, 101]])
    with torch.no_grad():
        found = attention(network, RectifiedFlow(), torch.randn(3, 2, 8, 8), T, {"caption": symbols})
    assert looking(network.backbone) and found.shape == (3, 5, 8, 8)
    assert (found[0, 3:] == 0).all() and (found[1, 1:] == 0).all() and (found[2] > 0).all()
    total = found.sum(1)
    if options["tokens"] == "joint":
        assert (total < 1).all() and (total > 0).all()
    else:
        torch.testing.assert_close(total, torch.ones(3, 8, 8))


def test_a_network_without_a_caption_looks_at_none() -> None:
    network = build_network(DIT, "class", 2, 8, classes=3).eval()
    assert not looking(network.backbone) and not looking(None)
    with pytest.raises(ValueError, match="attends to a caption"):
        attention(network, RectifiedFlow(), torch.randn(3, 2, 8, 8), T, {"class": TOLD["class"]})
