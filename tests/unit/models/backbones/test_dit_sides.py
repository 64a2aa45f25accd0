"""DiT over sequences and clips: shapes, places, and a batch of unequal lengths in which padding changes no answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import costs
from models.backbones import dit
from models.conditioning import Embedded
from models.diffusion.denoiser import build_network

OPTIONS = {"kind": "dit", "width": 24, "depth": 2, "heads": 2, "patch": 2}  # heads of 12: six pairs, two a side
SIDES = {1: (8,), 3: (4, 4, 6)}


def filled(model: nn.Module) -> Any:
    """Its zero layers filled, so that everything has an effect."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def made(sides: tuple[int, ...], **options: Any) -> dit.Model:
    config = dit.Config(**{**{key: value for key, value in OPTIONS.items() if key != "kind"}, **options})
    found: dit.Model = filled(dit.Model(config, 3, sides))
    return found


def given(*sides: int, n: int = 3, tokens: int = 0) -> tuple[Tensor, Tensor, Embedded]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, *sides, generator=generator)
    told = torch.randn(n, tokens, 24, generator=generator) if tokens else None
    mask = torch.arange(tokens) < torch.arange(1, n + 1)[:, None] if tokens else None
    return x, torch.linspace(0.2, 0.8, n), Embedded(torch.randn(n, 24, generator=generator), told, mask)


@pytest.mark.parametrize("options", [{}, {"rope": True}, {"long_skips": True, "qk_norm": True}], ids=str)
@pytest.mark.parametrize("sides", SIDES.values(), ids=str)
def test_shape_a_gradient_for_every_parameter_and_places(sides, options):
    model = made(sides, **options)
    x, t, condition = given(*sides)
    y = model(x, t, condition)
    assert y.shape == x.shape and y.dtype == torch.float32
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    with torch.no_grad():
        for axis in range(len(sides)):  # moved by a token along any side, the answer is not the same, moved
            moved = model(x.roll(2, 2 + axis), t, condition).roll(-2, 2 + axis)
            assert not torch.allclose(y, moved, atol=1e-3)
        other = tuple(side + 2 for side in sides)  # another size, with the same weights
        assert model(torch.randn(1, 3, *other), t[:1], Embedded(condition.vector[:1])).shape == (1, 3, *other)
    with pytest.raises(ValueError, match=r"made for latents of sides .*, got"):
        model(torch.zeros(3, 3, 4, 4), t, condition)
    assert not any("positions" in name for name in model.state_dict())


def test_a_token_of_several_frames():
    model = made((4, 4, 6), frames=2)
    assert model.grid == (2, 2, 3) and model.embed.in_features == 3 * 2 * 2 * 2
    x, t, condition = given(4, 4, 6)
    assert model(x, t, condition).shape == x.shape
    with pytest.raises(ValueError, match=r"patch: expected a divisor of the latent size \[3, 4, 6\], got 2"):
        model(x[:, :, :3], t, condition)
    for sides in ((4,), (4, 4)):
        with pytest.raises(ValueError, match="frames: 2 given, of latents of three sides"):
            made(sides, frames=2)


@pytest.mark.parametrize("sides", SIDES.values(), ids=str)
def test_costs_are_what_torch_counts(sides):
    model = made(sides)
    x, t, condition = given(*sides, n=1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, t, condition)
    assert dit.flops(model.config, 3, sides) == counter.get_total_flops() == costs.backbone(OPTIONS, 3, sides).flops


# ---- unequal lengths -------------------------------------------------------------------------------------------------


LENGTHS = (5, 8, 2)  # of eight; with patch 2, the first ends within a token


def there(length: int, *sides: int) -> Tensor:
    """bool [1, *sides]: the first places of the first side."""
    return (torch.arange(sides[0]) < length).view(1, -1, *[1] * (len(sides) - 1)).expand(1, *sides)


@pytest.mark.parametrize(
    "options",
    [{}, {"rope": True, "qk_norm": True}, {"long_skips": True}, {"tokens": "cross"}, {"tokens": "joint"}],
    ids=str,
)
def test_what_lies_in_the_padding_changes_no_bit_of_an_answer(options):
    model = made((8,), **options)
    x, t, condition = given(8, tokens=4 if "tokens" in options else 0)
    places = torch.cat([there(length, 8) for length in LENGTHS])
    answers = []
    for content in (0.0, 1e3, float("nan")):
        padded = torch.where(places[:, None], x, content)
        answers.append(model(padded, t, condition._replace(places=places)))
    for answer in answers:
        assert answer.isfinite().all()
        assert torch.equal(answer, answers[0])
    whole = condition._replace(places=torch.ones_like(places))
    torch.testing.assert_close(model(x, t, whole), model(x, t, condition))  # nothing left out: as without
    assert not torch.allclose(answers[0][0, :, :5], model(x, t, condition)[0, :, :5], atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"rope": True}, {"tokens": "joint"}], ids=str)
@pytest.mark.parametrize("sides", [(8,), (8, 2, 4)], ids=str)
def test_a_padded_sample_is_answered_as_it_is_alone(sides, options):
    """A batch of unequal lengths gives each what it gets by itself without padding, where lengths are whole tokens."""
    model = made(sides, **options)
    lengths = (4, 8, 2)
    x, t, condition = given(*sides, tokens=4 if "tokens" in options else 0)
    places = torch.cat([there(length, *sides) for length in lengths])
    together = model(x, t, condition._replace(places=places))
    for i, length in enumerate(lengths):
        own = Embedded(*(None if value is None else value[i : i + 1] for value in condition))
        alone = model(x[i : i + 1, :, :length], t[i : i + 1], own)
        torch.testing.assert_close(together[i : i + 1, :, :length], alone, atol=1e-5, rtol=1e-5)


def test_the_network_takes_places_as_part_of_what_it_is_told():
    network = filled(build_network(OPTIONS, "class", 3, (8,), 4))
    x, t, _ = given(8)
    places, told = torch.cat([there(length, 8) for length in LENGTHS]), {"class": torch.tensor([0, 1, 4])}
    answer = network(x, t, {**told, "/places": places})
    assert torch.equal(answer, network(torch.where(places[:, None], x, 7.0), t, {**told, "/places": places}))
    assert not torch.allclose(answer, network(x, t, told), atol=1e-3)
    with pytest.raises(ValueError, match="takes no latents of unequal length; give a dit"):
        unet = {"kind": "unet", "preset": "tiny"}
        build_network(unet, "none", 3, 8)(torch.zeros(1, 3, 8, 8), t[:1], {"/places": torch.ones(1, 8, 8) > 0})


def test_what_takes_two_sides_only():
    with pytest.raises(ValueError, match=r"kind: unet takes latents of two sides, got \[8\]; give a dit"):
        build_network({"kind": "unet", "preset": "tiny"}, "none", 3, (8,))
    with pytest.raises(ValueError, match=r"maps lie over latents of two sides, not over \[4, 4, 6\]"):
        build_network(OPTIONS, "none", 3, (4, 4, 6), spatial={"mask": {"channels": 1}})
