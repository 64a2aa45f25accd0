"""UNet: shapes, the zero it begins with, what matters to it, and sizes against the papers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import costs, registry
from models.backbones import unet
from models.conditioning import Embedded

SMALL = {"width": 8, "multipliers": (1, 2, 2), "attention": (False, True, True), "blocks": 1, "groups": 4,
         "head_width": 8}  # fmt: skip
PLAIN = {**SMALL, "scale_shift": False, "resample": "conv", "head_width": None}


def trained(channels: int = 3, size: int = 8, **options: object) -> unet.Model:
    """A model whose zero layers are filled, so that everything has an effect."""
    torch.manual_seed(0)
    model = unet.Model(unet.Config(**(SMALL | options)), channels, size)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def inputs(n: int = 2, channels: int = 3, size: int = 8) -> tuple[torch.Tensor, torch.Tensor, Embedded]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, channels, size, size, generator=generator)
    return x, torch.linspace(0.2, 0.8, n), Embedded(torch.randn(n, 32, generator=generator))


def test_a_new_model_predicts_zero_and_its_blocks_are_their_shortcuts():
    model = unet.Model(unet.Config(**SMALL), 3, 8)
    assert not model(*inputs()).any()
    x, c = torch.randn(2, 16, 4, 4), torch.randn(2, 32)
    assert torch.equal(model.mid_block(x, c), x)


@pytest.mark.parametrize(
    "options",
    [SMALL, PLAIN, {**PLAIN, "padding": 0}, {**SMALL, "middle_norm": False}, {**SMALL, "middle_attention": False},
     {**SMALL, "blocks": 2, "multipliers": (2, 1), "attention": (True, False)},
     {**PLAIN, "multipliers": (1,), "attention": (False,)}],
    ids=str,
)  # fmt: skip
def test_shape_and_a_gradient_for_every_parameter(options):
    model = trained(**options)
    x, t, condition = inputs()
    condition = Embedded(torch.randn(2, model.condition_width))
    y = model(x, t, condition)
    assert y.shape == x.shape and y.dtype == torch.float32
    y.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # a bias on the keys shifts all scores of a query alike: its gradient is zero but for rounding
        assert parameter.grad.any() or name.endswith("to_k.bias"), name


@pytest.mark.parametrize("options", [SMALL, PLAIN], ids=["adm", "plain"])
def test_time_and_condition_matter_and_samples_do_not_mix(options):
    model = trained(**options)
    x, t, condition = inputs()
    y = model(x, t, condition)
    assert not torch.allclose(y, model(x, t.flip(0), condition))
    assert not torch.allclose(y, model(x, t, Embedded(condition.vector.flip(0))))
    torch.testing.assert_close(y[1:], model(x[1:], t[1:], Embedded(condition.vector[1:])))


def test_maps_need_not_be_square():
    model = trained()
    x = torch.randn(2, 3, 8, 12)
    assert model(x, *inputs()[1:]).shape == x.shape


def test_every_skip_is_used():
    """A hook on a residual block of the way down changes the output, for each of them."""
    model = trained()
    y = model(*inputs())
    for level in model.down_blocks:
        for layer in [*level.resnets, *getattr(level, "downsamplers", [])]:
            handle = layer.register_forward_hook(lambda module, given, out: out + 1)
            assert not torch.allclose(model(*inputs()), y)
            handle.remove()


@pytest.mark.parametrize("options", [SMALL, PLAIN], ids=["adm", "plain"])
def test_activation_checkpointing_changes_nothing_but_memory(options):
    model = trained(**options)
    results, saved = [], []
    for flag in (False, True):
        if flag:
            registry.checkpoint_activations(model, "unet")
        model.zero_grad()
        kept = [0]
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            y = model(*inputs())
        saved.append(sum(kept))
        y.square().mean().backward()
        results.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
    assert saved[1] < saved[0] / 2
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_autocast_keeps_the_output_in_float32():
    model = trained()
    exact = model(*inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(*inputs())
    assert rough.dtype == torch.float32
    assert float(((rough - exact).norm() / exact.norm()).detach()) < 0.05


@pytest.mark.parametrize(
    ("preset", "size", "parameters", "table", "gigaflops"),
    [
        ("ddpm-32", 32, 35.746307e6, 0, None),  # google/ddpm-cifar10-32 has exactly these
        ("adm-64", 64, 296e6, 1000 * 4 * 192, None),  # Dhariwal and Nichol 2021, section 4.3's 296 M with 1,000 classes
        ("adm-256", 256, 554e6, 1000 * 4 * 256, 1120),  # 554 M; Peebles and Xie 2023, table 2: 1,120 G multiply-adds
    ],
)
def test_presets_have_the_sizes_of_the_papers(preset, size, parameters, table, gigaflops):
    cost = costs.backbone({"kind": "unet", "preset": preset}, 3, size)
    assert cost.parameters + table == pytest.approx(parameters, rel=1e-9 if table == 0 else 0.002)
    if gigaflops:
        assert cost.flops / 2e9 == pytest.approx(gigaflops, rel=0.002)


def test_bad_options():
    for name, value in {"attention": (True,), "head_width": 5, "groups": 3, "resample": "fir", "padding": 2}.items():
        with pytest.raises(ValueError, match=f"^{name}"):
            unet.Config(**(SMALL | {name: value}))
    with pytest.raises(ValueError, match="4 divides, got 6"):
        unet.Model(unet.Config(**SMALL), 3, 6)
