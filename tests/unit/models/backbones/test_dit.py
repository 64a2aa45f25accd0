"""DiT: shapes, the zero of adaLN-zero, places, and sizes against the paper's table and torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import registry
from models.backbones import dit
from models.conditioning import Embedded

SMALL = dit.Config(width=24, depth=2, heads=3, patch=2)


def trained(config: dit.Config = SMALL, channels: int = 3, size: int = 8) -> dit.Model:
    """A model whose zero layers are filled, so that everything has an effect."""
    torch.manual_seed(0)
    model = dit.Model(config, channels, size)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def inputs(
    n: int = 2, channels: int = 3, size: int = 8, width: int = 24
) -> tuple[torch.Tensor, torch.Tensor, Embedded]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, channels, size, size, generator=generator)
    return x, torch.linspace(0.2, 0.8, n), Embedded(torch.randn(n, width, generator=generator))


def test_a_new_model_predicts_zero_and_its_blocks_are_the_identity():
    model = dit.Model(SMALL, 3, 8)
    assert not model(*inputs()).any()
    tokens = torch.randn(2, 16, 24)
    assert torch.equal(model.blocks[0](tokens, torch.randn(2, 24)), tokens)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_shape_and_a_gradient_for_every_parameter(patch, qk_norm):
    model = trained(dit.Config(24, 2, 3, patch, qk_norm=qk_norm))
    x, t, condition = inputs()
    y = model(x, t, condition)
    assert y.shape == x.shape and y.dtype == torch.float32
    y.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_time_condition_and_place_matter_and_samples_do_not_mix():
    model = trained()
    x, t, condition = inputs()
    y = model(x, t, condition)
    assert not torch.allclose(y, model(x, t.flip(0), condition))
    assert not torch.allclose(y, model(x, t, Embedded(condition.vector.flip(0))))
    assert not torch.allclose(y, model(x.roll(2, dims=3), t, condition).roll(-2, dims=3))
    torch.testing.assert_close(y[1:], model(x[1:], t[1:], Embedded(condition.vector[1:])))


def test_patches_come_back_where_they_were():
    """With no blocks and linear ends that undo each other, the model is the layer norm of patches, in place."""
    model = dit.Model(dit.Config(width=12, depth=1, heads=3, patch=2), 3, 4)
    nn.init.eye_(model.embed.weight)
    nn.init.eye_(model.out.weight)
    model.positions.zero_()
    x = torch.randn(2, 3, 4, 4)
    y = model(x, torch.zeros(2), Embedded(torch.zeros(2, 12)))
    corner = x[1, :, 2:, :2]
    expected = (corner - corner.mean()) / (corner.var(unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(y[1, :, 2:, :2], expected)


def test_activation_checkpointing_changes_nothing_but_memory():
    model = trained()
    results = []
    for flag in (False, True):
        model.activation_checkpointing = flag
        model.zero_grad()
        y = model(*inputs())
        y.square().mean().backward()
        results.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_autocast_keeps_the_output_in_float32():
    model = trained()
    exact = model(*inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(*inputs())
    assert rough.dtype == torch.float32
    assert float(((rough - exact).norm() / exact.norm()).detach()) < 0.03


@pytest.mark.parametrize(
    ("preset", "millions", "gigaflops"),
    [
        ("dit-s/2", 33, 6.06),
        ("dit-b/2", 130, 23.01),
        ("dit-l/2", 458, 80.71),
        ("dit-xl/2", 675, 118.64),
        ("dit-s/8", 33, 0.36),
    ],
)
def test_presets_have_the_sizes_of_the_paper(preset, millions, gigaflops):
    """Peebles and Xie 2023, table 4; their Gflops are multiply-adds, their parameters include the class table."""
    options = {"kind": "dit", "preset": preset}
    assert registry.parameters("backbones", options, channels=4, size=32) / 1e6 == pytest.approx(millions, rel=0.02)
    count = dit.flops(registry.make_config("backbones", options), 4, 32)
    assert count / 2e9 == pytest.approx(gigaflops, rel=0.01)


@pytest.mark.parametrize("config", [SMALL, dit.Config(32, 3, 2, 1, mlp_ratio=2.0)], ids=str)
def test_flops_are_what_torch_counts(config):
    model = dit.Model(config, 3, 8)
    # the counter knows the products of the plain attention, not those of the CPU's fused one
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs(n=1, width=config.width))
    assert dit.flops(config, 3, 8) == counter.get_total_flops()


def test_bad_sizes():
    with pytest.raises(ValueError, match="patch"):
        dit.Model(dit.Config(patch=3), 4, 8)
    with pytest.raises(ValueError, match="depth"):
        dit.Config(depth=0)
