"""An autoencoder of text: a passage of L tokens <-> l latent vectors of C channels, l below L.

A transformer reads the tokens, groups of L / l neighbours become a vector each, the posterior's mean is scaled to a
root mean square of 1; from the vectors another transformer says all tokens at once. That noise on the latents in
training makes the decoder forgive a sampler, and that latents are normalised for it, is of Lovelace et al. 2023,
"Latent Diffusion for Language Generation", whose decoder says one token after the other; a decoder of all at once from
vectors of a position is of TextLDM. Which text a token stands for is said by `pipeline/data/tokens.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import posterior
from models.layers import Layer, run

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
        if self.length % self.latents:
            raise ValueError(f"latents: expected a divisor of length {self.length}, got {self.latents}")
        if not 0 <= self.noise < 10:
            raise ValueError(f"noise: expected a number from 0 to 10, got {self.noise}")


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

    def decode(self, z: Tensor) -> Tensor:
        """z [n, C, l] -> logits float32 [n, L, vocabulary]."""
        h = self.from_latents(z.transpose(1, 2))  # [n, l, C] -> [n, l, group D]
        h = self.decoder(h.reshape(len(z), self.length, -1) + self.out_places.weight)  # [n, L, D]
        return self.to_logits(h).float()  # type: ignore[no-any-return]

    def forward(self, x: Tensor, noise: Tensor, spread: float = 0.0) -> tuple[Tensor, Tensor]:
        """x int64 [n, L], standard normal noise [n, C, l] -> logits, and moments. spread: deviation of more noise on
        the draw: both add up to one Gaussian, of variance exp(logvar) + spread^2."""
        moments = self.encode(x)
        mean, log_variance = posterior.split(moments)
        return self.decode(mean + (log_variance.exp() + spread**2).sqrt() * noise), moments


class Stack(nn.Module):
    """Layers of a transformer, and a norm."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.activation_checkpointing = False
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, S, D] -> [n, S, D]."""
        for layer in self.layers:
            x = run(layer, x, recompute=self.activation_checkpointing)
        return self.norm(x)  # type: ignore[no-any-return]


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p in nats a token, a mean over the tokens of each passage with its END: [n]. logits [n, L, V], tokens int64
    [n, L]. Places behind the END say nothing."""
    there = counted(tokens)
    each = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")  # [n, L]
    return (each * there).sum(1) / there.sum(1)


def counted(tokens: Tensor) -> Tensor:
    """bool [n, L]: the tokens of passages [n, L], each with its END."""
    ended = (tokens == END).long()
    return ended.cumsum(1) - ended == 0


def right(logits: Tensor, tokens: Tensor) -> Tensor:
    """bool [n, L]: which of the `counted` tokens are the most likely ones."""
    return (logits.argmax(-1) == tokens) & counted(tokens)
