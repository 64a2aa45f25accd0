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
    n: int = 2, channels: int = 3, size: int = 8, width: int = 24, caption: int = 5
) -> tuple[torch.Tensor, torch.Tensor, Embedded]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, channels, size, size, generator=generator)
    vector, tokens = (torch.randn(n, *shape, generator=generator) for shape in ((width,), (caption, width)))
    return x, torch.linspace(0.2, 0.8, n), Embedded(vector, tokens, torch.ones(n, caption, dtype=torch.bool))


def test_a_new_model_predicts_zero_and_its_blocks_are_the_identity():
    model = dit.Model(SMALL, 3, 8)
    assert not model(*inputs()).any()
    tokens = torch.randn(2, 16, 24)
    assert torch.equal(model.blocks[0](tokens, torch.randn(2, 24)), tokens)


@pytest.mark.parametrize(
    "options",
    [{}, {"qk_norm": True}, {"rope": True}, {"rms_norm": True}, {"long_skips": True, "depth": 3}, {"gelu": "tanh"},
     {"own_embeddings": True}, {"tokens": "cross", "qk_norm": True}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_shape_and_a_gradient_for_every_parameter(patch, options):
    model = trained(dit.Config(**({"width": 24, "depth": 2, "heads": 3, "patch": patch} | options)))
    x, t, condition = inputs(width=model.condition_width)
    y = model(x, t, condition)
    assert y.shape == x.shape and y.dtype == torch.float32
    y.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("rope", [False, True])
def test_time_condition_and_place_matter_and_samples_do_not_mix(rope):
    model = trained(dit.Config(width=24, depth=2, heads=3, patch=2, rope=rope))
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
    model.positions.sines.zero_()
    x = torch.randn(2, 3, 4, 4)
    y = model(x, torch.zeros(2), Embedded(torch.zeros(2, 12)))
    corner = x[1, :, 2:, :2]
    expected = (corner - corner.mean()) / (corner.var(unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(y[1, :, 2:, :2], expected)


@pytest.mark.parametrize("rope", [False, True])
def test_latents_of_another_shape(rope):
    """Any whose sides the patch divides; places matter, and nothing of them is in the weights."""
    model = trained(dit.Config(width=24, depth=2, heads=3, patch=2, rope=rope))
    _, t, condition = inputs()
    x = torch.randn(2, 3, 4, 12)
    y = model(x, t, condition)
    assert y.shape == x.shape and not torch.allclose(y, model(x.roll(2, dims=3), t, condition).roll(-2, dims=3))
    assert torch.equal(y, model(x, t, condition))  # from the tables that are kept
    assert not any("positions" in name or "places" in name for name in model.state_dict())
    with pytest.raises(ValueError, match=r"divisor of the latent size \[5, 8\], got 2"):
        model(torch.zeros(2, 3, 5, 8), t, condition)


def test_patches_of_another_shape_come_back_where_they_were():
    model = dit.Model(dit.Config(width=24, depth=1, heads=3, patch=2), 3, 8)
    with torch.no_grad():
        model.positions.sines.zero_()
        model.embed.weight.zero_()[:12].fill_diagonal_(1.0)
        model.embed.bias.zero_()
        model.out.weight.zero_()[:, :12].fill_diagonal_(1.0)
    x = torch.arange(3 * 6 * 10, dtype=torch.float32).view(1, 3, 6, 10)
    model.positions._others[(3, 5), x.device] = (torch.zeros(15, 24),)
    y = model(x, torch.tensor([0.5]), Embedded(torch.zeros(1, 24)))
    for row in range(0, 6, 2):  # the last norm works on each token: what it gives is a function of that patch
        for column in range(0, 10, 2):
            patch = x[0, :, row : row + 2, column : column + 2].flatten()
            normed = torch.nn.functional.layer_norm(torch.cat([patch, torch.zeros(12)]), (24,), eps=1e-6)[:12]
            torch.testing.assert_close(y[0, :, row : row + 2, column : column + 2].flatten(), normed)


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


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dit.Config(32, 3, 2, 1, mlp_ratio=2.0, long_skips=True),
        dit.Config(32, 2, 4, rope=True, rms_norm=True, swiglu=True),
    ],
    ids=str,
)  # fmt: skip
def test_flops_are_what_torch_counts(config):
    model = dit.Model(config, 3, 8)
    # the counter knows the products of the plain attention, not those of the CPU's fused one
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs(n=1, width=config.width))
    assert dit.flops(config, 3, 8, caption=5) == counter.get_total_flops()


def test_a_lightning_preset_costs_what_its_plain_one_does():
    for size in ("s", "xl"):
        plain, modern = (registry.make_config("backbones", {"kind": "dit", "preset": f"{name}-{size}/1"})
                         for name in ("dit", "lightning"))  # fmt: skip
        assert modern.swiglu and modern.rope and modern.rms_norm and modern.qk_norm
        assert dit.flops(modern, 4, 16) == pytest.approx(dit.flops(plain, 4, 16), rel=2e-3)
    with pytest.raises(ValueError, match="swiglu: takes the place of gelu"):
        dit.Config(swiglu=True, gelu="tanh")


def test_long_skips_begin_as_none_and_join_the_halves():
    """New, they change nothing; trained, block 0's tokens reach the last block beside the way through the middle."""
    torch.manual_seed(0)
    model = dit.Model(dit.Config(width=24, depth=5, heads=3, patch=2, long_skips=True), 3, 8)
    tokens, skip = torch.randn(2, 4, 24), torch.randn(2, 4, 24)
    assert len(model.skips) == 2
    for join in model.skips:
        torch.testing.assert_close(join(tokens, skip), tokens)
    taken: dict[str, torch.Tensor] = {}
    for i in (0, 1):
        model.blocks[i].register_forward_hook(lambda m, given, out, i=i: taken.update({f"made {i}": out}))
        model.skips[i].register_forward_hook(lambda m, given, out, i=i: taken.update({f"joined {i}": given[1]}))
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    model(*inputs())
    assert torch.equal(taken["joined 0"], taken["made 1"]) and torch.equal(taken["joined 1"], taken["made 0"])


def test_own_embeddings_that_are_copies_are_the_shared_one():
    model, own = trained(), dit.Model(dit.Config(24, 2, 3, 2, own_embeddings=True), 3, 8)
    state = dict(model.state_dict())
    own.load_state_dict(
        state | {name.replace("time", "own_times.0"): value for name, value in state.items() if "time" in name}
    )
    x, t, condition = inputs()
    torch.testing.assert_close(own(x, t, Embedded(condition.vector.repeat(1, 2))), model(x, t, condition))


def test_bad_sizes():
    with pytest.raises(ValueError, match="patch"):
        dit.Model(dit.Config(patch=3), 4, 8)
    with pytest.raises(ValueError, match="depth"):
        dit.Config(depth=0)
