"""Channels beside the latents: as if they were concatenated to them; nothing at the start, nothing where not told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import registry
from models.backbones import dit
from models.conditioning import Embedded
from models.diffusion.denoiser import build_network, denoiser
from models.diffusion.guidance import composed, guided, only
from models.diffusion.process import RectifiedFlow
from models.patches import patched

DIT = {"kind": "dit", "width": 24, "depth": 2, "heads": 3, "patch": 2}
UNET = {"kind": "unet", "width": 8, "multipliers": (1, 2), "attention": (False, True), "blocks": 1, "groups": 4,
        "head_width": 8}  # fmt: skip
SPATIAL = {"mask": {"channels": 1}, "edge": {"channels": 2}}
BESIDE = 5
each = pytest.mark.parametrize("options", [DIT, UNET], ids=["dit", "unet"])


def filled(model: Any) -> Any:
    """With every zero layer filled, so that everything has an effect."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def built(options: dict[str, Any], beside: int = BESIDE) -> Any:
    torch.manual_seed(0)
    return registry.build("backbones", options, channels=3, size=8, beside=beside)


def inputs(model: Any) -> tuple[torch.Tensor, torch.Tensor, Embedded]:
    """Latents that are not square."""
    generator = torch.Generator().manual_seed(1)
    vector = torch.randn(2, model.condition_width, generator=generator)
    x, channels = (torch.randn(2, k, 8, 12, generator=generator) for k in (3, BESIDE))
    return x, torch.tensor([0.2, 0.8]), Embedded(vector, channels=channels)


@each
def test_one_that_did_not_know_them_stays_what_it_was(options):
    before, model = filled(built(options, beside=0)), built(options)
    missing, unexpected = model.load_state_dict(before.state_dict(), strict=False)
    assert len(missing) == 1 and "beside" in missing[0] and not unexpected
    x, t, told = inputs(model)
    y = model(x, t, told)
    assert y.shape == x.shape and torch.equal(y, before(x, t, told))


@each
def test_they_are_as_if_they_were_concatenated(options):
    """Against the first layer of a model whose latents have all the channels."""
    model, wide = filled(built(options)), registry.build("backbones", options, channels=3 + BESIDE, size=8)
    own, theirs = (m.embed if options["kind"] == "dit" else m.conv_in for m in (model, wide))
    other = model.embed_beside if options["kind"] == "dit" else model.conv_in_beside
    x, t, told = inputs(model)
    with torch.no_grad():
        theirs.weight.copy_(torch.cat([own.weight, other.weight], dim=1))
        theirs.bias.copy_(own.bias)
    seen: list[torch.Tensor] = []
    theirs.register_forward_hook(lambda layer, given, out: seen.append(out))
    wide(torch.cat([x, told.channels], dim=1), t, told)
    if options["kind"] == "dit":
        parts = own(patched(x, model.patch)) + other(patched(told.channels, model.patch))
    else:
        parts = own(x) + other(told.channels)
    torch.testing.assert_close(parts, seen[0], rtol=1e-5, atol=1e-5)


@each
def test_they_matter_and_all_of_them_are_learned_from(options):
    model = filled(built(options))
    x, t, told = inputs(model)
    channels = told.channels.clone().requires_grad_()
    y = model(x, t, told._replace(channels=channels))
    y.square().mean().backward()
    assert all(channels.grad[:, i].any() for i in range(BESIDE))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert not torch.allclose(model(x, t, told._replace(channels=-channels)), y)
    untold = model(x, t, told._replace(channels=torch.zeros_like(channels)))
    assert torch.equal(untold, model(x, t, told._replace(channels=None)))
    torch.testing.assert_close(model(x[1:], t[1:], Embedded(told.vector[1:], channels=channels[1:])), y[1:])


def test_flops_of_a_dit_are_what_torch_counts():
    model = built(DIT)
    x, t = torch.zeros(1, 3, 8, 8), torch.zeros(1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, t, Embedded(torch.zeros(1, 24), channels=torch.zeros(1, BESIDE, 8, 8)))
    assert dit.flops(registry.make_config("backbones", DIT), 3, 8, beside=BESIDE) == counter.get_total_flops()


@each
def test_a_network_with_maps_is_guided_away_from_none(options):
    """The null has one place for all: guidance expands it. Both kinds of guidance are the same where all is told."""
    torch.manual_seed(0)
    network = filled(build_network(options, "class", 3, 8, 4, spatial=SPATIAL))
    maps = {"mask": torch.rand(2, 2, 8, 8), "edge": torch.randn(2, 3, 8, 8)}
    for value in maps.values():
        value[:, -1] = 1.0
    condition = {"class": torch.tensor([0, 3]), **maps}
    null, x, t = network.null(1), torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.7])
    assert network.null(2)["edge"].shape == (2, 3, 1, 1)
    plain = denoiser(network, RectifiedFlow(), "velocity")
    away = guided(plain, 2.0, null)(x, t, condition)
    untold = plain(x, t, network.null(2))
    torch.testing.assert_close(away, untold + 2.0 * (plain(x, t, condition) - untold))
    terms = [(2.0, only(condition, list(condition), null))]
    torch.testing.assert_close(composed(plain, terms, null)(x, t, condition), away)
    alone = plain(x, t, only(condition, ["mask"], null))
    assert not torch.allclose(alone, untold) and not torch.allclose(alone, plain(x, t, condition))
