"""The text autoencoder: shapes, the end of a passage, noise, what learns."""

from __future__ import annotations

import pytest
import torch

from models import posterior, registry
from models.autoencoders import text

TINY = {"kind": "text", "vocabulary": 260, "length": 8, "latents": 4, "latent_channels": 6, "width": 16, "depth": 1,
        "heads": 2}  # fmt: skip


def made(**more):
    torch.manual_seed(0)
    return registry.build("autoencoders", {**TINY, **more})


def passages(n: int = 3) -> torch.Tensor:
    x = torch.randint(1, 260, (n, 8), generator=torch.Generator().manual_seed(1))
    x[1, 5:] = 0
    return x


def test_shapes_and_a_mean_of_one_size():
    model, x = made(), passages()
    noise = torch.randn(3, 6, 4)
    logits, moments = model(x, noise)
    assert moments.shape == (3, 12, 4) and moments.dtype == torch.float32
    assert logits.shape == (3, 8, 260) and logits.dtype == torch.float32
    mean, _ = posterior.split(moments)
    torch.testing.assert_close(mean.square().mean(1), torch.ones(3, 4), atol=1e-3, rtol=0)
    torch.testing.assert_close(logits, model.decode(posterior.sample(moments, noise)))
    assert model.latent_sides((32, 32)) == (4,) and model.data_sides((4,)) == (8,) and model.blank(2).shape == (2, 8)


def test_more_noise_adds_up_with_the_posteriors_to_one_gaussian():
    model, x = made(), passages()[:1]
    seen: list[torch.Tensor] = []
    model.decode = lambda z, _: seen.append(z) or z  # type: ignore[method-assign]
    many, noise = x.expand(4000, -1), torch.randn(4000, 6, 4, generator=torch.Generator().manual_seed(2))
    _, moments = model(many, noise, torch.full((4000,), 0.5))
    mean, log_variance = posterior.split(moments)
    deviation = (seen[0] - mean).std(0)
    torch.testing.assert_close(deviation, (log_variance[0].exp() + 0.25).sqrt(), rtol=0.08, atol=0)


def test_how_much_noise_a_passage_gets():
    u = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert made(noise=2.0).spread(u).tolist() == [2.0, 2.0, 2.0]
    assert made(noise=2.0, noise_from=0.5).spread(u).tolist() == [0.5, 1.25, 2.0]
    with pytest.raises(ValueError, match=r"noise_from: expected a number from 0 to noise 0\.3, got 0\.5"):
        made(noise_from=0.5)
    assert "noise_from" not in registry.resolve("autoencoders", {"kind": "text"})


def test_what_is_behind_the_end_is_neither_counted_nor_learned():
    x = torch.tensor([[5, 6, 0, 0], [5, 6, 7, 8], [0, 0, 0, 0]])
    assert text.counted(x).tolist() == [[True, True, True, False], [True] * 4, [True, False, False, False]]
    logits = torch.zeros(3, 4, 10).scatter_(2, x[..., None], 5.0).requires_grad_()
    assert text.right(logits, x).sum(1).tolist() == [3, 4, 1]
    loss = text.cross_entropy(logits, x)
    torch.testing.assert_close(loss, torch.full((3,), (9 * torch.tensor(-5.0).exp() + 1).log().item()))
    loss.sum().backward()
    assert not logits.grad[0, 3].any() and logits.grad[0, 2].any()


@pytest.mark.parametrize("causal", [0, 2])
def test_every_parameter_learns_with_and_without_checkpointing(causal):
    results = []
    for flag in (False, True):
        model, x = made(causal=causal), passages()
        if flag:
            registry.checkpoint_activations(model, "text")
        logits, moments = model(x, torch.zeros(3, 6, 4), torch.full((3,), 0.1))
        (text.cross_entropy(logits, x).mean() + posterior.kl(moments).mean()).backward()
        results.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in results[0].items():
        assert gradient is not None and gradient.any(), name
        assert torch.equal(gradient, results[1][name])


def test_one_token_after_the_other():
    model, x, z = made(causal=2), passages(), torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
        none = torch.zeros(3, 8, dtype=torch.bool)
        own, told = model.said(z, x, none), model.decode(z, x)
        assert torch.equal(model.decode(z).argmax(-1), own)  # kept keys and values are those of all at once
        assert torch.equal(model.decode(z), model.decode(z, own)) and not torch.equal(told.argmax(-1), own)
        other = x.clone()
        other[:, 4] += 1
        differs = (model.decode(z, other) != told).any(-1)
        assert not differs[:, :5].any() and differs[:, 5:].all()
        known = none.clone()
        known[:, 3:5] = True
        forced = model.said(z, x, known)
        assert torch.equal(forced[:, 3:5], x[:, 3:5]) and torch.equal(forced[:, :3], own[:, :3])
        assert torch.equal(forced, model.decode(z, forced).argmax(-1).where(~known, x))
        noise = torch.zeros(3, 6, 4)
        assert torch.equal(model(x, noise)[0], model.decode(posterior.split(model.encode(x))[0], x))
        assert torch.equal(model(x, noise, told=False)[0], model.decode(posterior.split(model.encode(x))[0]))
    parallel = made()
    assert parallel.said(z, x, known) is x and "causal" not in registry.resolve("autoencoders", TINY)
    with pytest.raises(ValueError, match="causal: expected 0 or more"):
        made(causal=-1)


def test_a_few_passages_are_learned_by_heart():
    model, x = made(width=32), passages(4)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    noise = torch.Generator().manual_seed(0)
    for _ in range(150):
        logits, _ = model(x, torch.randn(4, 6, 4, generator=noise), torch.full((4,), 0.1))
        optimiser.zero_grad()
        text.cross_entropy(logits, x).mean().backward()
        optimiser.step()
    logits, _ = model(x, torch.zeros(4, 6, 4))
    assert torch.equal(text.right(logits, x), text.counted(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents": 3}, "latents: expected a divisor of length 8"),
        ({"tokens": "words"}, "tokens: expected bpe or bytes"),
        ({"tokens": "bytes"}, "vocabulary: expected 257"),
        ({"vocabulary": 100}, "vocabulary: expected at least 258"),
        ({"noise": -1.0}, "noise: expected a number from 0"),
        ({"depth": 0}, "depth: expected at least 1"),
        ({"heads": 3}, "heads: expected a divisor of width"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)
