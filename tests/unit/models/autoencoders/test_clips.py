"""The autoencoder of clips: one frame is an image, nothing reaches forward in time, shapes come back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models import costs, registry
from models.autoencoders import blank, clips, data_sides, latent_sides
from models.autoencoders.clips import inflated

SMALL: dict[str, Any] = {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4, "latent_channels": 3}


def build(**more: Any) -> Any:
    torch.manual_seed(0)
    return registry.build("autoencoders", {"kind": "clips", **SMALL, **more}, channels=3).eval()


@pytest.mark.parametrize("time", clips.TIMES)
@pytest.mark.parametrize("quant", [False, True])
def test_a_clip_of_one_frame_is_what_the_autoencoder_of_images_makes_of_it(time: int, quant: bool) -> None:
    model = build(time=time, quant_conv=quant)
    flat: Any = registry.build("autoencoders", {"kind": "kl", **SMALL, "quant_conv": quant}, channels=3).eval()
    model.load_state_dict(inflated(model, flat.state_dict()))
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        moments, expected = model.encode(images[:, :, None]), flat.encode(images)
        torch.testing.assert_close(moments[:, :, 0], expected, atol=1e-6, rtol=0)
        z = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(model.decode(z[:, :, None])[:, :, 0], flat.decode(z), atol=1e-6, rtol=0)
        # a clip that stands still is that image in each frame
        still = images[:, :, None].expand(-1, -1, 1 + 2 * time, -1, -1)
        torch.testing.assert_close(model.encode(still)[:, :, -1], expected, atol=1e-6, rtol=0)


def test_weights_of_another_form_are_refused() -> None:
    flat: Any = registry.build("autoencoders", {"kind": "kl", **SMALL, "width": 16}, channels=3)
    with pytest.raises(ValueError, match=r"another autoencoder: encoder\.conv_in\.weight is \[16, 3, 3, 3\] there"):
        inflated(build(), flat.state_dict())


@pytest.mark.parametrize(("time", "frames", "latents"), [(1, 4, 4), (2, 5, 3), (4, 9, 3), (4, 1, 1)])
def test_shapes_come_back(time: int, frames: int, latents: int) -> None:
    model = build(time=time)
    assert latent_sides(model, (frames, 8, 12)) == (latents, 4, 6) and data_sides(model, (latents, 4, 6)) == (
        frames,
        8,
        12,
    )
    x = torch.randn(2, 3, frames, 8, 12)
    with torch.no_grad():
        back, moments = model(x, torch.zeros(2, 3, latents, 4, 6))
    assert moments.shape == (2, 6, latents, 4, 6) and back.shape == x.shape


@pytest.mark.parametrize("time", clips.TIMES)
def test_nothing_reaches_forward_in_time(time: int) -> None:
    model = build(time=time, span=2)
    for part in model.modules():  # with numbers in all kernels over time
        if isinstance(part, clips.AlongTime):
            torch.nn.init.normal_(part.weight, std=0.3)
    x = torch.randn(1, 3, 1 + 2 * time, 8, 8)
    other = x.clone()
    other[:, :, 1 + time :] += 1  # the frames of the last latent
    with torch.no_grad():
        z, moved = model.encode(x), model.encode(other)
        torch.testing.assert_close(z[:, :, :2], moved[:, :, :2], atol=1e-6, rtol=0)
        assert (z[:, :, 2] - moved[:, :, 2]).abs().max() > 1e-4
        z = torch.randn(1, 3, 3, 4, 4)
        changed = z.clone()
        changed[:, :, 2] += 1
        a, b = model.decode(z), model.decode(changed)
        torch.testing.assert_close(a[:, :, : 1 + time], b[:, :, : 1 + time], atol=1e-6, rtol=0)
        assert (a[:, :, -1] - b[:, :, -1]).abs().max() > 1e-4


def test_recomputed_activations_give_the_same_gradients() -> None:
    found = []
    for recompute in (False, True):
        model = build(time=2, attention=True).train()
        if recompute:
            registry.checkpoint_activations(model, "clips")
        x = torch.linspace(-1, 1, 3 * 3 * 64).reshape(1, 3, 3, 8, 8)
        model(x, torch.zeros(1, 3, 2, 4, 4))[0].square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": 3}, "time: expected one of 1, 2, 4, got 3"),
        ({"time": 4, "multipliers": [1]}, "time: 4 needs 2 resolutions or more"),
        ({"span": 0}, "span: expected at least 1"),
        ({"groups": 3}, "groups: expected a divisor"),
    ],
)
def test_what_is_no_autoencoder_of_clips_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("sides", "message"),
    [((8, 8), "frames, height and width"), ((6, 8, 8), "such as 5 or 7, not 6"), ((5, 9, 8), "no multiples of 2")],
)
def test_clips_that_do_not_fit_are_named(sides: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_sides(build(), sides)


def test_costs_know_clips() -> None:
    options = {"kind": "clips", **SMALL}
    nine, one = costs.autoencoder(options, 3, 16), costs.autoencoder(options, 3, (1, 16, 16))
    assert nine == costs.autoencoder(options, 3, (9, 16, 16)) and nine.parameters == one.parameters
    assert 5 * one.flops < nine.flops < 10 * one.flops
    assert blank(build(), 2, 3, 16).shape == (2, 3, 9, 16, 16)
