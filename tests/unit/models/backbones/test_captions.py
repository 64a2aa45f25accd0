"""Backbones that attend to a caption: what is not there has no effect, a new one ignores it, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import costs, registry
from models.backbones import dit
from models.conditioning import Embedded

DIT = {"kind": "dit", "width": 24, "depth": 3, "heads": 3, "patch": 2}
UNET = {"kind": "unet", "width": 8, "multipliers": (1, 2), "attention": (False, True), "blocks": 1, "groups": 4,
        "head_width": 8}  # fmt: skip
SHAPE = {"channels": 3, "size": 8}
MODELS = {
    "dit cross": {**DIT, "tokens": "cross"},
    "dit joint": {**DIT, "tokens": "joint", "qk_norm": True, "rope": True, "long_skips": True, "rms_norm": True},
    "dit joint plain": {**DIT, "tokens": "joint"},
    "unet cross": {**UNET, "tokens": "cross"},
}
each = pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)


def built(options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return registry.build("backbones", options, **SHAPE)


def trained(options: dict[str, Any]) -> Any:
    """A model whose zero layers are filled, so that everything has an effect."""
    model = built(options)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def inputs(model: Any, n: int = 2, caption: int = 40) -> tuple[torch.Tensor, torch.Tensor, Embedded]:
    """The first caption has 3 tokens, the others all."""
    generator, width = torch.Generator().manual_seed(1), model.condition_width
    x = torch.randn(n, 3, 8, 8, generator=generator)
    vector, tokens = (torch.randn(n, *shape, generator=generator) for shape in ((width,), (caption, width)))
    mask = torch.ones(n, caption, dtype=torch.bool)
    mask[0, 3:] = False
    return x, torch.linspace(0.2, 0.8, n), Embedded(vector, tokens, mask)


@each
def test_a_caption_does_not_depend_on_its_neighbours_and_padding_has_no_effect(options):
    model = trained(options)
    x, t, told = inputs(model)
    together = model(x, t, told)
    for length in (3, 5):  # alone, and with less padding
        mask = told.mask[:1, :length]
        alone = model(x[:1], t[:1], Embedded(told.vector[:1], told.tokens[:1, :length], mask))
        torch.testing.assert_close(alone, together[:1], rtol=0, atol=1e-5)
    alone = model(x[:1], t[:1], Embedded(told.vector[:1], told.tokens[:1, :3]))  # no mask: all are there
    torch.testing.assert_close(alone, together[:1], rtol=0, atol=1e-5)
    garbage = told._replace(tokens=torch.where(told.mask[..., None], told.tokens, 100.0))
    torch.testing.assert_close(model(x, t, garbage), together, rtol=0, atol=1e-6)
    other = told._replace(tokens=torch.where(told.mask[..., None], -told.tokens, told.tokens))
    assert not torch.allclose(model(x, t, other)[0], together[0], atol=1e-3)


@each
def test_looks_are_attention_to_tokens_that_are_there_and_change_no_bit(options):
    model = trained(options).eval()
    x, t, told = inputs(model)
    looks = [torch.zeros(1)]  # what was there stays
    with torch.no_grad():
        assert torch.equal(model(x, t, told, looks=looks), model(x, t, told))
    first, *looks = looks
    assert first.shape == (1,) and len(looks) == {"dit": 3, "unet": 4}[options["kind"]]
    for each in looks:
        total = each.sum(1)  # [n, h, w]
        assert each.dtype == torch.float32 and each.shape[:2] == (2, 40) and each.shape[2:] == (4, 4)
        assert (each[0, 3:] == 0).all() and (each[0, :3] > 0).all() and (each[1] > 0).all()
        if options["tokens"] == "joint":  # the image's own tokens have the rest
            assert (total < 1).all() and (total > 0).all()
        else:
            torch.testing.assert_close(total, torch.ones_like(total))


@each
def test_gradients_reach_the_tokens_that_are_there_and_every_parameter(options):
    model = trained(options)
    x, t, told = inputs(model)
    tokens = told.tokens.clone().requires_grad_()
    model(x, t, told._replace(tokens=tokens)).square().mean().backward()
    assert tokens.grad is not None
    reached = tokens.grad.abs().sum(-1) > 0  # [n, S]
    assert torch.equal(reached, told.mask)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # a bias on the keys alone shifts all scores of a query alike: its gradient is zero but for rounding
        assert parameter.grad.any() or name.endswith("to_k.bias"), name


@each
def test_a_new_network_ignores_the_caption(options):
    model = built(options)
    last = model.out if options["kind"] == "dit" else model.conv_out
    nn.init.normal_(last.weight)
    x, t, told = inputs(model)
    y = model(x, t, told)
    assert y.any() and torch.equal(model(x, t, told._replace(tokens=-told.tokens)), y)


@pytest.mark.parametrize("options", [MODELS["dit cross"], MODELS["unet cross"]], ids=["dit", "unet"])
def test_one_that_knew_no_captions_goes_on_as_it_was(options):
    """Its weights fit, and what is new adds nothing."""
    before, model = trained({**options, "tokens": "none"}), built(options)
    missing, unexpected = model.load_state_dict(before.state_dict(), strict=False)
    assert missing and not unexpected and all("cross" in name for name in missing)
    x, t, told = inputs(model)
    assert torch.equal(model(x, t, told), before(x, t, told))


@each
def test_activation_checkpointing_changes_nothing(options):
    model, results = trained(options), []
    x, t, told = inputs(model)
    for flag in (False, True):
        if flag:
            registry.checkpoint_activations(model, options["kind"])
        model.zero_grad()
        tokens = told.tokens.clone().requires_grad_()
        y = model(x, t, told._replace(tokens=tokens))
        y.square().mean().backward()
        results.append([y.detach(), tokens.grad, *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("dit")])
def test_flops_of_a_dit_are_what_torch_counts(name):
    for options in (MODELS[name], {**MODELS[name], "depth": 1}):
        config = registry.make_config("backbones", options)
        assert costs.backbone(options, 3, 8).flops == dit.flops(config, 3, 8, caption=64)


def test_new_joint_blocks_are_the_identity_and_the_last_one_gives_no_caption():
    model = built(MODELS["dit joint plain"])
    x, c, tokens = torch.randn(2, 16, 24), torch.randn(2, 24), torch.randn(2, 5, 24)
    for block in model.blocks:
        made = block(x, c, None, tokens, None)
        assert torch.equal(made[0], x) and torch.equal(made[1], tokens)
    of_caption = [sum(p.numel() for p in block.caption.parameters()) for block in model.blocks]
    of_image = sum(p.numel() for p in dit.Block(registry.make_config("backbones", DIT)).parameters())
    assert of_caption == [of_image, of_image, 2 * (24 * 48 + 48)]


def test_attention_of_a_joint_block_is_over_image_and_caption():
    """Against a softmax written out, for one head; image and caption of unlike weights."""
    model = trained({**MODELS["dit joint plain"], "width": 8, "heads": 1})
    block, c = model.blocks[0], torch.randn(1, 8)
    parts, projected, steered = (torch.randn(1, 4, 8), torch.randn(1, 3, 8)), [], []
    for stream, h in zip((block, block.caption), parts, strict=True):
        steered.append(stream.modulation(c).chunk(6, dim=-1))
        shift, scale = steered[-1][:2]
        projected.append(stream.attention.qkv(F.layer_norm(h, (8,), eps=1e-6) * (1 + scale) + shift))
    q, k, v = torch.cat(projected, dim=1).chunk(3, dim=-1)
    y = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1) @ v
    made = block(parts[0], c, None, parts[1], None)
    for i, (stream, h, part) in enumerate(zip((block, block.caption), parts, y.split([4, 3], dim=1), strict=True)):
        _, _, gate, shift, scale, last_gate = steered[i]
        h = h + gate * stream.attention.out(part)
        expected = h + last_gate * stream.mlp(F.layer_norm(h, (8,), eps=1e-6) * (1 + scale) + shift)
        torch.testing.assert_close(made[i], expected)


def test_autocast_keeps_the_stream_of_a_caption_in_float32():
    model = trained(MODELS["dit joint"])
    kept = []
    model.blocks[1].register_forward_pre_hook(lambda block, given: kept.append(given[3].dtype))
    x, t, told = inputs(model)
    exact = model(x, t, told)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x, t, told._replace(tokens=told.tokens.bfloat16()))
    assert kept == [torch.float32] * 2 and rough.dtype == torch.float32
    assert float(((rough - exact).norm() / exact.norm()).detach()) < 0.03


def test_attention_of_a_unet_to_a_caption_by_hand():
    """What `tokens: cross` adds at each place: queries and out of every pixel, keys and values of every token, the
    scores and their sum. Here at 4 x 4 pixels: a block down, one in the middle, two up."""
    caption, pixels, width, context = 64, 16, 16, 32
    place = 2 * pixels * width * width + 2 * caption * context * width + 2 * pixels * caption * width
    plain, cross = (costs.backbone({**UNET, "tokens": tokens}, 3, 8) for tokens in ("none", "cross"))
    assert cross.flops - plain.flops == 2 * 4 * place
    weights = 2 * (width * width + width) + 2 * (context * width + width)
    assert cross.parameters - plain.parameters == 4 * weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**DIT, "tokens": "joined"}, "tokens: expected"),
        ({**DIT, "tokens": "cross", "own_embeddings": True}, "tokens: a DiT with own_embeddings"),
        ({**DIT, "tokens": "joint", "own_embeddings": True}, "tokens: a DiT with own_embeddings"),
        ({**UNET, "tokens": "joint"}, "tokens: expected"),
        ({**UNET, "tokens": "cross", "attention": (False, False), "middle_attention": False}, "tokens: attention to"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        registry.make_config("backbones", options)


@pytest.mark.parametrize("options", [DIT, UNET], ids=["dit", "unet"])
def test_fingerprints_of_models_without_captions_do_not_know_the_option(options):
    assert "tokens" not in registry.resolve("backbones", options)
    assert registry.resolve("backbones", {**options, "tokens": "cross"})["tokens"] == "cross"
