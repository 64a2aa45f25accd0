"""Routing: which tokens stay, where the others come back, what the network then computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models import costs
from models.diffusion.denoiser import build_network
from models.routing import Route

OPTIONS = {"kind": "dit", "width": 32, "depth": 6, "heads": 2, "patch": 2}


def network(told: dict[str, Any] | None = None, **more: Any) -> Any:
    torch.manual_seed(0)
    made = build_network({**OPTIONS, **more}, "class", 4, 8, 3, **(told or {}))
    for p in made.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.1)  # the gates begin as zero
    return made


def given() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return torch.randn(3, 4, 8, 8), torch.rand(3), {"class": torch.tensor([0, 1, 3])}


@pytest.mark.parametrize("rope", [False, True])
def test_tokens_go_past_the_blocks_of_the_route_and_no_others(rope: bool) -> None:
    net, route = network(rope=rope), Route(torch.rand(3, 16), 0.25, 1, 4)
    assert route.stay.shape == (3, 12, 1)
    plain, (before,) = net(*given(), depths=(1,))
    routed, (same, amid, behind) = net(*given(), route=route, depths=(1, 2, 4))
    torch.testing.assert_close(same, before, rtol=0, atol=0)  # block 0 sees all tokens
    past = torch.ones(3, 16, dtype=torch.bool).scatter(1, route.stay[..., 0], False)
    for tokens in (amid, behind):
        assert torch.equal(tokens[past], before[past])
        assert not torch.isclose(tokens[~past], before[~past]).all(-1).any()
    assert (routed - plain).abs().max() > 0.01


@pytest.mark.parametrize("rope", [False, True])
def test_a_route_that_all_tokens_stay_on_changes_nothing_but_their_order(rope: bool) -> None:
    net, route = network(rope=rope), Route(torch.rand(3, 16), 0.01, 1, 4)
    torch.testing.assert_close(net(*given(), route=route), net(*given()), rtol=1e-5, atol=1e-5)


def test_looking_at_tokens_changes_no_bit_of_the_answer() -> None:
    assert torch.equal(network()(*given()), network()(*given(), depths=(2, 6))[0])


@pytest.mark.parametrize("tokens", ["none", "joint"])
def test_tokens_alone_are_those_that_come_with_the_answer(tokens: str) -> None:
    caption = {"tokens": 8, "encoder": {"kind": "trained", "width": 16, "heads": 2, "depth": 1}}
    net = network({"caption": caption} if tokens == "joint" else {}, tokens=tokens)
    x, t, condition = given()
    condition = {**net.null(3), **condition}
    _, (second, fourth) = net(x, t, condition, depths=(2, 4))
    nothing, (alone,) = net(x, t, condition, depths=(4,), answer=False)
    assert nothing is None and torch.equal(alone, fourth) and not torch.equal(second, fourth)


def test_a_route_saves_what_its_blocks_cost() -> None:
    whole, routed = (costs.backbone(OPTIONS, 4, 8, route).flops for route in (None, (0.5, 1, 4)))
    without = costs.backbone({**OPTIONS, "depth": 3}, 4, 8).flops  # three blocks less
    assert whole - routed == pytest.approx((whole - without) / 2, rel=0.25)


def test_long_skips_are_not_routed() -> None:
    with pytest.raises(ValueError, match="long_skips"):
        network(long_skips=True)(*given(), route=Route(torch.rand(3, 16), 0.5, 1, 4))
