"""An autoencoder of text: a passage of L tokens <-> l latent vectors of C channels, l below L.

A transformer reads the tokens, groups of L / l neighbours become a vector each, the posterior's mean is scaled to a
root mean square of 1; from the vectors another transformer says all tokens at once, or, with `causal` layers behind it,
one after the other. That noise on the latents in training makes the decoder forgive a sampler, that latents are
normalised for it, and that a decoder who knows the tokens before writes fluently where latents leave it open, is of
Lovelace et al. 2023, "Latent Diffusion for Language Generation"; a decoder of all at once from vectors of a position is
of TextLDM. Which text a token stands for is said by `pipeline/data/tokens.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import posterior
from models.layers import Causal, Layer, run
from models.registry import later

END = 0  # the token behind the last one of a passage, and in all places that follow
FIRST_LOG_VARIANCE = -4.0  # of the posterior, before training


@dataclass(frozen=True)
class Config:
    """Shape of a text autoencoder."""

    tokens: str = "bpe"  # "bpe", trained on the training split, or "bytes"
    vocabulary: int = 8192  # tokens that there are, with the end; of bytes 257
    length: int = 64  # tokens of a passage at most; what is beyond is cut off
    latents: int = 32  # latent vectors of a passage; a divisor of length
    latent_channels: int = 32  # channels of a latent
    width: int = 256  # channels of a token; a multiple of heads
    depth: int = 4  # layers of the encoder, and of the decoder
    heads: int = 4  # attention heads
    noise: float = 0.3  # deviation of the noise on latents in training, whose root mean square is 1
    noise_from: float | None = later(None)  # the least of it, drawn evenly from here to `noise`; None: always `noise`
    causal: int = later(0)  # layers behind the decoder's that see the tokens before; 0: all tokens are said at once

    def __post_init__(self) -> None:
        if self.tokens not in ("bpe", "bytes"):
            raise ValueError(f"tokens: expected bpe or bytes, got {self.tokens!r}")
        least = 257 if self.tokens == "bytes" else 258
        if self.vocabulary < least or (self.tokens == "bytes" and self.vocabulary != least):
            need = f"257 with tokens: {self.tokens}" if self.tokens == "bytes" else "at least 258, the bytes and more"
            raise ValueError(f"vocabulary: expected {need}, got {self.vocabulary}")
        for name in ("length", "latents", "latent_channels", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.causal < 0:
            raise ValueError(f"causal: expected 0 or more, got {self.causal}")
        if self.length % self.latents:
            raise ValueError(f"latents: expected a divisor of length {self.length}, got {self.latents}")
        if not 0 <= self.noise < 10:
            raise ValueError(f"noise: expected a number from 0 to 10, got {self.noise}")
        if self.noise_from is not None and not 0 <= self.noise_from <= self.noise:
            raise ValueError(f"noise_from: expected a number from 0 to noise {self.noise}, got {self.noise_from}")


class Model(nn.Module):
    """tokens int64 [n, L] <-> z [n, C, l] -> logits [n, L, vocabulary]."""

    of_images, of_text = False, True

    def __init__(self, config: Config, channels: int = 1) -> None:
        """channels: of images, of no use here."""
        super().__init__()
        self.config = config
        width, group = config.width, config.length // config.latents
        self.latent_channels, self.length = config.latent_channels, config.length
        self.symbols = nn.Embedding(config.vocabulary, width)
        self.places = nn.Embedding(config.length, width)
        self.out_places = nn.Embedding(config.length, width)
        for table in (self.symbols, self.places, self.out_places):
            nn.init.normal_(table.weight, std=0.02)
        self.encoder = Stack(width, config.depth, config.heads)
        self.to_moments = nn.Linear(group * width, 2 * config.latent_channels)
        with torch.no_grad():
            self.to_moments.bias[config.latent_channels :] = FIRST_LOG_VARIANCE
        self.from_latents = nn.Linear(config.latent_channels, group * width)
        self.decoder = Stack(width, config.depth, config.heads)
        self.to_logits = nn.Linear(width, config.vocabulary)
        if config.causal:
            self.before = nn.Embedding(config.vocabulary, width)
            nn.init.normal_(self.before.weight, std=0.02)
            self.causal = Stack(width, config.causal, config.heads, Causal)

    def latent_sides(self, sides: tuple[int, ...]) -> tuple[int]:
        """(l,), whatever the sides."""
        return (self.config.latents,)

    def data_sides(self, sides: tuple[int, ...]) -> tuple[int]:
        """(L,)."""
        return (self.config.length,)

    def blank(self, n: int) -> Tensor:
        """Tokens int64 [n, L] of empty passages, on torch's default device."""
        return torch.full((n, self.length), END, dtype=torch.int64)

    def encode(self, x: Tensor) -> Tensor:
        """x int64 [n, L] -> moments float32 [n, 2C, l]."""
        h = self.encoder(self.symbols(x) + self.places.weight)  # [n, L, D]
        h = self.to_moments(h.reshape(len(x), self.config.latents, -1)).float()  # [n, l, group D] -> [n, l, 2C]
        mean, log_variance = h.chunk(2, dim=-1)
        mean = F.rms_norm(mean, mean.shape[-1:], eps=1e-6)  # else a large mean would get around the noise
        return posterior.clamp(torch.cat([mean, log_variance], dim=-1).transpose(1, 2))

    def decode(self, z: Tensor, tokens: Tensor | None = None) -> Tensor:
        """z [n, C, l] -> logits float32 [n, L, vocabulary]. With causal layers those of each token know the ones before
        it: of `tokens` int64 [n, L], by default of what they say themselves (`said`)."""
        h = self._opened(z)
        if not self.config.causal:
            return self.to_logits(h).float()  # type: ignore[no-any-return]
        if tokens is None:
            tokens = self._said(h)
        h = h + self.before(F.pad(tokens[:, :-1], (1, 0), value=END))  # END is where a passage begins, too
        seen = torch.ones(self.length, self.length, dtype=torch.bool, device=h.device).tril()
        return self.to_logits(self.causal(h, seen)).float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def said(self, z: Tensor, tokens: Tensor, known: Tensor) -> Tensor:
        """What causal layers say one after the other, the most likely token each time, but `tokens` int64 [n, L] where
        these are `known`, bool [n, L]: int64 [n, L]. Without such layers the tokens as they are: none sees another."""
        return self._said(self._opened(z), tokens, known) if self.config.causal else tokens

    def _opened(self, z: Tensor) -> Tensor:
        h = self.from_latents(z.transpose(1, 2))  # [n, l, C] -> [n, l, group D]
        return self.decoder(h.reshape(len(z), self.length, -1) + self.out_places.weight)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _said(self, h: Tensor, tokens: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        """`said` of h [n, L, D], what the latents have become."""
        found = torch.full((len(h), self.length + 1), END, dtype=torch.int64, device=h.device)
        layers: list[Any] = list(self.causal.layers)
        kept: list[tuple[Tensor, ...]] = [()] * len(layers)
        for place in range(self.length):
            x = h[:, place : place + 1] + self.before(found[:, place : place + 1])
            for i, layer in enumerate(layers):
                x, kept[i] = layer.following(x, kept[i])
            token = self.to_logits(self.causal.norm(x))[:, 0].argmax(-1)
            if tokens is not None and known is not None:
                token = torch.where(known[:, place], tokens[:, place], token)
            found[:, place + 1] = token
        return found[:, 1:]

    def spread(self, u: Tensor) -> Tensor:
        """Deviations of the training's noise, [n], of uniform draws in (0, 1), [n]."""
        least, most = self.config.noise_from, self.config.noise
        return torch.full_like(u, most) if least is None else least + (most - least) * u

    def forward(
        self, x: Tensor, noise: Tensor, spread: Tensor | None = None, told: bool = True
    ) -> tuple[Tensor, Tensor]:
        """x int64 [n, L], standard normal noise [n, C, l] -> logits, and moments. spread: [n], deviations of more noise
        on the draw: both add up to one Gaussian, of variance exp(logvar) + spread^2. told: causal layers see the tokens
        of x, and not what they say."""
        moments = self.encode(x)
        mean, log_variance = posterior.split(moments)
        more = 0.0 if spread is None else spread.float().square()[:, None, None]
        z = mean + (log_variance.exp() + more).sqrt() * noise
        return self.decode(z, x if told else None), moments


class Stack(nn.Module):
    """Layers of a transformer, and a norm."""

    def __init__(self, width: int, depth: int, heads: int, kind: type[Layer] = Layer) -> None:
        super().__init__()
        self.activation_checkpointing = False
        self.layers = nn.ModuleList(kind(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, *mask: Tensor) -> Tensor:
        """x [n, S, D], a mask as its layers have it -> [n, S, D]."""
        for layer in self.layers:
            x = run(layer, x, *mask, recompute=self.activation_checkpointing)
        return self.norm(x)  # type: ignore[no-any-return]


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p in nats a token, a mean over the tokens of each passage with its END: [n]. logits [n, L, V], tokens int64
    [n, L]. Places behind the END say nothing."""
    there = counted(tokens)
    return (surprise(logits, tokens) * there).sum(1) / there.sum(1)


def surprise(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of each token, in nats: float32 [n, L]. logits [n, L, V], tokens int64 [n, L].

    As rows: torch's own [n, V, L] would turn the logits around, forth and back.
    """
    rows = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")  # [n L]
    return rows.view_as(tokens)


def counted(tokens: Tensor) -> Tensor:
    """bool [n, L]: the tokens of passages [n, L], each with its END."""
    ended = (tokens == END).long()
    return ended.cumsum(1) - ended == 0


def right(logits: Tensor, tokens: Tensor) -> Tensor:
    """bool [n, L]: which of the `counted` tokens are the most likely ones."""
    return (logits.argmax(-1) == tokens) & counted(tokens)
