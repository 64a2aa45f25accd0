"""A small GPT: says each token of a passage by those before it (Radford et al. 2019; norms before each part).

It is the yardstick of text in a latent space, and the judge of its perplexity. Tokens are int64 [n, L], END behind the
last one; which text they stand for is not known here, nor is any file. Of replies the tokens of the text before come
first, a prefix int64 [n, P]: END up to where that begins, and END behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoders.text import END, counted, surprise
from models.layers import Causal

PARTS = 4  # of a training batch, each of passages of like length: what is behind their ends is not reckoned


@dataclass(frozen=True)
class Config:
    """Shape of a GPT."""

    vocabulary: int  # tokens that there are, with the end
    length: int = 64  # tokens of a passage at most
    width: int = 256  # channels of a token; a multiple of heads
    depth: int = 6  # layers
    heads: int = 4  # attention heads
    dropout: float = 0.1  # share of the channels that are dropped behind the embedding and each layer, in training
    prefix: int = 0  # tokens before a passage, which are told


class Model(nn.Module):
    """Tokens int64 [n, L] -> logits [n, L, vocabulary] of each, given those before it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.symbols = nn.Embedding(config.vocabulary, config.width)
        self.places = nn.Embedding(config.prefix + config.length, config.width)
        for table in (self.symbols, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Causal(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.to_logits = nn.Linear(config.width, config.vocabulary)

    def forward(self, tokens: Tensor, prefix: Tensor | None = None) -> Tensor:
        """tokens int64 [n, S <= L], prefix int64 [n, P] of a model that is told one -> logits float32 [n, S,
        vocabulary]; those at place i are of token i, and know the tokens before it alone, and the prefix."""
        whole = tokens if prefix is None else torch.cat([prefix, tokens], 1)
        before = F.pad(whole[:, :-1], (1, 0), value=END)  # END is where a passage begins, too
        return self.logits(before)[:, whole.shape[1] - tokens.shape[1] :]

    def logits(self, before: Tensor) -> Tensor:
        """The logits behind each token of `before`, int64 [n, S], whose first is END."""
        return self.to_logits(self.states(before)).float()  # type: ignore[no-any-return]

    def states(self, before: Tensor) -> Tensor:
        """What the logits are made of: [n, S, W], behind the last norm."""
        count = before.shape[1]
        h = self.dropout(self.symbols(before) + self.places.weight[:count])
        mask = torch.ones(count, count, dtype=torch.bool, device=before.device).tril()
        for layer in self.layers:
            h = self.dropout(layer(h, mask))
        return self.norm(h)  # type: ignore[no-any-return]


@torch.no_grad()
def states(model: Model, tokens: Tensor) -> Tensor:
    """A passage as a vector: the mean of the states behind its tokens, float32 [n, W]; the empty one's is that of its
    beginning. tokens int64 [n, L]."""
    prefix = model.config.prefix  # of nothing
    begun = F.pad(tokens[:, :-1], (1 + prefix, 0), value=END)
    behind = model.states(begun)[:, prefix:].float()  # at place i: what is known when the tokens before i are
    there = counted(tokens)[..., None]  # as many places as tokens and END; the last of them knows the whole passage
    return (behind * there).sum(1) / there.sum(1)


def nats(model: nn.Module, tokens: Tensor, batch: int = 64, prefix: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of each passage -log p, its END included, and how many tokens these are: float32 and int64 [n], on the CPU."""
    sums, counts = [], []
    with torch.no_grad():
        for at in range(0, len(tokens), batch):
            part, told = tokens[at : at + batch], () if prefix is None else (prefix[at : at + batch],)
            there = counted(part)
            sums.append((surprise(model(part, *told), part) * there).sum(1).cpu())
            counts.append(there.sum(1).cpu())
    return torch.cat(sums), torch.cat(counts)


def perplexity(model: nn.Module, tokens: Tensor, batch: int = 64, prefix: Tensor | None = None) -> float:
    """exp of the mean of -log p over all tokens of the passages [n, L], each with its END."""
    sums, counts = nats(model, tokens, batch, prefix)
    return math.exp(float(sums.double().sum() / counts.sum()))


@torch.no_grad()
def sample(model: Model, uniform: Tensor, temperature: float = 1.0, prefix: Tensor | None = None) -> Tensor:
    """Passages int64 [n, L], END behind each; uniform: float [n, L] in [0, 1), a number for each token. A passage is a
    function of its own numbers, and its prefix."""
    n, length = uniform.shape
    tokens = torch.full((n, length + 1), END, dtype=torch.int64, device=uniform.device)
    going = torch.ones(n, dtype=torch.bool, device=uniform.device)
    for place in range(length):
        before = (
            tokens[:, : place + 1]
            if prefix is None
            else torch.cat([tokens[:, :1], prefix, tokens[:, 1 : place + 1]], 1)
        )
        p = (model.logits(before)[:, -1].double() / temperature).softmax(-1)
        drawn = (p.cumsum(-1) < uniform[:, place, None].double()).sum(-1).clamp(max=p.shape[-1] - 1)
        tokens[:, place + 1] = torch.where(going, drawn, END)
        going &= tokens[:, place + 1] != END
        if not going.any():
            break
    return tokens[:, 1:]


def train(
    config: Config,
    tokens: Tensor,
    steps: int,
    batch: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
    say: Callable[[int, float], None] = lambda step, loss: None,
    prefix: Tensor | None = None,
    half: bool = False,
) -> Model:
    """A model of passages int64 [n, L], in evaluation mode, told a prefix [n, P] each where there is one. Trained by
    AdamW, the rate rising for a twentieth of the steps and falling to 0 along a cosine; `say` is told each step and its
    loss, in nats a token. half: products in bf16. On a CPU all that is drawn follows from `seed`, and the global
    generator is left as it was.
    """
    chooser, warm = torch.Generator().manual_seed(seed), max(1, steps // 20)
    with torch.random.fork_rng(devices=[]):  # first weights, dropout
        torch.manual_seed(seed)
        model = Model(config).to(tokens.device).train()
        optimiser = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
        for step in range(1, steps + 1):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * min(step / warm, 0.5 * (1 + math.cos(math.pi * (step - 1) / steps)))
            rows = torch.randint(len(tokens), (batch,), generator=chooser).to(tokens.device)
            lengths = counted(tokens[rows]).sum(1)
            loss, total = 0.0, lengths.sum()
            optimiser.zero_grad()
            for some in rows[lengths.argsort(stable=True)].chunk(PARTS):
                part, told = tokens[some], None if prefix is None else prefix[some]
                there = counted(part)
                longest = int(there.sum(1).max())
                part, there = part[:, :longest], there[:, :longest]
                with torch.autocast(tokens.device.type, torch.bfloat16, enabled=half):
                    logits = model(part, told)
                share = (surprise(logits, part) * there).sum() / total
                share.backward()
                loss += float(share.detach())
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            say(step, loss)
    return model.eval()
