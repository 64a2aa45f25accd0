"""The autoregressive yardstick: what it sees, its perplexity against values by hand, samples, training."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from models.baselines import autoregressive as gpt

CONFIG = gpt.Config(vocabulary=6, length=5, width=16, depth=2, heads=2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return gpt.Model(CONFIG).eval()


def test_a_token_knows_those_before_it_alone(model):
    x = torch.tensor([[1, 2, 3, 4, 5]])
    base = model(x)
    for place in range(5):
        other = x.clone()
        other[0, place] = 0
        changed = (model(other) - base).abs().amax(-1)[0] > 1e-6
        assert changed.tolist() == [i > place for i in range(5)]


class Fixed(nn.Module):
    """The same probabilities at each place."""

    def forward(self, tokens):
        return torch.tensor([0.5, 0.25, 0.25]).log().expand(*tokens.shape, 3)

    def logits(self, before):
        return self.forward(before)


def test_perplexity_by_hand():
    tokens = torch.tensor([[1, 2, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    sums, counts = gpt.nats(Fixed(), tokens, batch=2)
    assert counts.tolist() == [3, 4, 1]
    torch.testing.assert_close(sums, torch.tensor([5.0, 8.0, 1.0]) * math.log(2))  # two bits a token, one an end
    assert gpt.perplexity(Fixed(), tokens) == pytest.approx(2 ** (14 / 8))


def test_samples_follow_the_probabilities_and_end():
    uniform = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    found = gpt.sample(Fixed(), uniform)
    assert ((found[:, 0] == 0).float().mean() - 0.5).abs() < 0.03 and (
        (found[:, 0] == 2).float().mean() - 0.25
    ).abs() < 0.03
    ended = found[:, 0] == 0
    assert not found[ended].any()
    torch.testing.assert_close(gpt.sample(Fixed(), uniform[7:9]), found[7:9])
    assert not gpt.sample(Fixed(), torch.rand(50, 3), temperature=1e-3).any()  # the most likely token is the end


def test_it_learns_a_grammar_and_leaves_the_global_generator_alone():
    rows = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 4, 5, 0]]).repeat(8, 1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    losses, others = [], []
    model = gpt.train(CONFIG, rows, 120, 16, 1e-2, say=lambda _, loss: losses.append(loss))
    assert torch.equal(torch.get_rng_state(), before) and not model.training
    assert losses[-1] < 0.5 < losses[0]
    assert gpt.perplexity(model, rows) < 1.3 < gpt.perplexity(model, rows.flip(1))
    gpt.train(CONFIG, rows, 120, 16, 1e-2, say=lambda step, loss: others.append(loss) if step < 5 else None)
    assert others == losses[:4]
    halves: list[float] = []
    gpt.train(CONFIG, rows, 5, 16, 1e-2, say=lambda _, loss: halves.append(loss), half=True)
    assert halves[0] != losses[0] and halves[0] == pytest.approx(losses[0], rel=0.01) and halves[-1] < halves[0]
    drawn = gpt.sample(model, torch.rand(64, 5, generator=torch.Generator().manual_seed(1)))
    known = {tuple(row) for row in rows.tolist()}
    assert sum(tuple(row) in known for row in drawn.tolist()) > 50


def test_a_batch_in_parts_of_like_length_is_the_whole_batch(monkeypatch):
    rows = torch.randint(1, 6, (40, 5), generator=torch.Generator().manual_seed(0))
    for row, length in zip(rows, torch.arange(40) % 6, strict=True):
        row[length:] = 0
    found: list[list[float]] = []
    for parts in (gpt.PARTS, 1):
        monkeypatch.setattr(gpt, "PARTS", parts)
        losses: list[float] = []
        config = dataclasses.replace(CONFIG, dropout=0.0, prefix=1)
        gpt.train(config, rows, 6, 16, 1e-2, say=lambda _, loss, to=losses: to.append(loss), prefix=rows[:, :1])
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-4) and found[0][-1] < found[0][0]


def test_a_prefix_is_known_and_not_counted():
    torch.manual_seed(0)
    told = gpt.Model(gpt.Config(vocabulary=6, length=5, width=16, depth=2, heads=2, prefix=3)).eval()
    x, prefix = torch.tensor([[1, 2, 0, 0, 0]] * 2), torch.tensor([[0, 4, 0], [0, 5, 0]])
    found = told(x, prefix)
    assert found.shape == (2, 5, 6) and (found[0, 0] - found[1, 0]).abs().max() > 1e-6
    _, counts = gpt.nats(told, x, prefix=prefix)
    assert counts.tolist() == [3, 3]
    one, same, other = gpt.states(told, torch.tensor([[1, 2, 0, 0, 0], [1, 2, 0, 0, 3], [2, 2, 0, 0, 0]]))
    torch.testing.assert_close(one, same)
    assert (one - other).abs().max() > 1e-6
    uniform = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))
    drawn = gpt.sample(told, uniform, prefix=prefix)
    torch.testing.assert_close(gpt.sample(told, uniform[1:], prefix=prefix[1:]), drawn[1:])
    p = told(drawn, prefix).double().softmax(-1).cumsum(-1)  # what was drawn is what the passes of whole rows say
    again = (p < uniform[..., None].double()).sum(-1)
    there = gpt.counted(drawn)
    assert (again == drawn)[there].all()


def test_what_follows_from_the_prefix_is_learned():
    prefix = torch.tensor([[1, 0], [2, 0]]).repeat(20, 1)
    tokens = torch.tensor([[3, 0, 0], [4, 0, 0]]).repeat(20, 1)
    config = gpt.Config(vocabulary=6, length=3, width=16, depth=1, heads=2, prefix=2)
    model = gpt.train(config, tokens, steps=60, batch=16, learning_rate=1e-2, prefix=prefix)
    assert gpt.perplexity(model, tokens, prefix=prefix) < 1.2 < gpt.perplexity(model, tokens, prefix=prefix.flip(0))
