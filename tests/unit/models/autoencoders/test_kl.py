"""The KL autoencoder: factors, moments, and the layout of diffusers' AutoencoderKL down to names and counts."""

from __future__ import annotations

import pytest
import torch

from models import posterior, registry
from models.autoencoders import kl

TINY = {"width": 8, "blocks": 1, "groups": 4, "latent_channels": 3}


@pytest.mark.parametrize(("multipliers", "factor"), [((1,), 1), ((1, 2), 2), ((1, 2, 2), 4), ((1, 2, 2, 2), 8)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("attention", [False, True])
def test_shapes_at_every_factor(multipliers, factor, channels, attention):
    model = kl.Model(kl.Config(multipliers=multipliers, attention=attention, **TINY), channels)
    assert model.factor == factor and model.latent_channels == 3
    x = torch.randn(2, channels, 16, 24)
    noise = torch.randn(2, 3, 16 // factor, 24 // factor)
    reconstruction, moments = model(x, noise)
    assert moments.shape == (2, 6, 16 // factor, 24 // factor) and moments.dtype == torch.float32
    assert reconstruction.shape == x.shape
    torch.testing.assert_close(reconstruction, model.decode(posterior.sample(moments, noise)))
    torch.testing.assert_close(moments, model.encode(x))


def test_every_parameter_learns():
    torch.manual_seed(0)
    model = kl.Model(kl.Config(multipliers=(1, 2), attention=True, **TINY), 3)
    reconstruction, moments = model(torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4))
    (reconstruction.square().mean() + posterior.kl(moments).mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # a bias on the keys shifts all scores of a query alike: its gradient is zero but for rounding
        assert parameter.grad.any() or name.endswith("to_k.bias"), name


def test_activation_checkpointing_changes_nothing_but_memory():
    torch.manual_seed(0)
    model = kl.Model(kl.Config(multipliers=(1, 2), attention=True, **TINY), 3)
    x, noise = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    results = []
    for flag in (False, True):
        if flag:
            registry.checkpoint_activations(model, "kl")
        model.zero_grad()
        reconstruction, moments = model(x, noise)
        (reconstruction.square().mean() + posterior.kl(moments).mean()).backward()
        results.append([reconstruction.detach(), *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_log_variance_is_clamped():
    model = kl.Model(kl.Config(multipliers=(1,), **TINY), 3)
    torch.nn.init.constant_(model.quant_conv.bias, 1e6)
    mean, log_variance = posterior.split(model.encode(torch.zeros(1, 3, 4, 4)))
    assert torch.all(log_variance == 20) and torch.all(mean > 1e5)


def test_wrong_images_are_refused():
    model = kl.Model(kl.Config(multipliers=(1, 2, 2), **TINY), 3)
    for shape in ((1, 1, 8, 8), (1, 3, 8, 6)):
        with pytest.raises(ValueError, match="multiples of 4"):
            model.encode(torch.zeros(shape))


def test_it_has_the_parameters_of_stable_diffusions_autoencoder():
    assert registry.parameters("autoencoders", {"kind": "kl", "preset": "base-f8"}, channels=3) == 83_653_863


def test_names_are_those_of_diffusers():
    """A sample of every part, as in stabilityai/sd-vae-ft-mse's file."""
    with torch.device("meta"):
        model = registry.build("autoencoders", {"kind": "kl", "preset": "base-f8"}, channels=3)
    state = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert len(state) == 248
    expected = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down_blocks.0.resnets.1.norm2.bias": (128,),
        "encoder.down_blocks.0.downsamplers.0.conv.weight": (128, 128, 3, 3),
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": (256, 128, 1, 1),
        "encoder.down_blocks.3.resnets.1.conv2.weight": (512, 512, 3, 3),
        "encoder.mid_block.attentions.0.group_norm.weight": (512,),
        "encoder.mid_block.attentions.0.to_q.weight": (512, 512),
        "encoder.mid_block.attentions.0.to_out.0.bias": (512,),
        "encoder.mid_block.resnets.1.conv1.weight": (512, 512, 3, 3),
        "encoder.conv_norm_out.weight": (512,),
        "encoder.conv_out.weight": (8, 512, 3, 3),
        "quant_conv.weight": (8, 8, 1, 1),
        "post_quant_conv.weight": (4, 4, 1, 1),
        "decoder.conv_in.weight": (512, 4, 3, 3),
        "decoder.mid_block.attentions.0.to_v.bias": (512,),
        "decoder.up_blocks.0.resnets.2.conv1.weight": (512, 512, 3, 3),
        "decoder.up_blocks.1.upsamplers.0.conv.weight": (512, 512, 3, 3),
        "decoder.up_blocks.2.resnets.0.conv_shortcut.weight": (256, 512, 1, 1),
        "decoder.up_blocks.3.resnets.0.conv1.weight": (128, 256, 3, 3),
        "decoder.conv_norm_out.bias": (128,),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    }
    assert {name: state.get(name) for name in expected} == expected
    assert not any(name.startswith(("encoder.down_blocks.3.down", "decoder.up_blocks.3.up")) for name in state)


def test_the_diffusers_config_says_what_was_built():
    config = registry.make_config("autoencoders", {"kind": "kl", "preset": "tiny-f4"})
    written = kl.diffusers_config(config, channels=1, size=32)
    assert written["block_out_channels"] == [32, 64, 64] and written["layers_per_block"] == 1
    assert written["mid_block_add_attention"] is False and written["norm_num_groups"] == 8
    assert written["in_channels"] == written["out_channels"] == 1
