"""Captions: read byte by byte by a small transformer that is trained with the denoiser, or embedded beforehand by a
frozen encoder. Both give a vector, which joins the time, and tokens, to which a backbone attends.

Reading and cutting text is left to `pipeline/data/captions.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.conditioning.embedded import Conditions, Embedded
from models.layers import Layer

PADDING, BEGIN = 0, 257  # a byte b is 1 + b; every caption begins with BEGIN, so that the empty one is a token as well
SYMBOLS = 258
LENGTH, POOLED = "caption/length", "caption/pooled"  # of embedded captions, beside "caption"


class Bytes(nn.Module):
    """A transformer over the bytes of a caption, trained together with the denoiser: any script, no file, no cache.

    tokens: symbols that it reads at most, BEGIN among them. output: width of what it gives.
    """

    def __init__(self, tokens: int, output: int, width: int = 128, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens = tokens
        self.symbols = nn.Embedding(SYMBOLS, width)
        self.places = nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.to_tokens = nn.Linear(width, output)
        self.to_vector = nn.Linear(width, output)
        for table in (self.symbols, self.places):
            nn.init.normal_(table.weight, std=0.02)
        for values in (self.to_vector.weight, self.to_vector.bias):  # begins as no condition
            nn.init.zeros_(values)

    def forward(self, condition: Conditions, x: Tensor) -> Embedded:
        """condition["caption"] int64 [n, S <= tokens] of symbols -> vector [n, output], tokens [n, S, output]."""
        symbols = condition["caption"]
        mask = symbols != PADDING  # [n, S]
        h = self.symbols(symbols) + self.places(torch.arange(symbols.shape[1], device=symbols.device))
        for layer in self.layers:
            h = layer(h, mask)
        h = self.norm(h)
        return Embedded(self.to_vector(masked_mean(h, mask)), self.to_tokens(h), mask)

    def null(self, n: int, device: torch.device | str = "cpu") -> Conditions:
        """The empty caption, for n samples."""
        symbols = torch.full((n, self.tokens), PADDING, dtype=torch.int64, device=device)
        symbols[:, 0] = BEGIN
        return {"caption": symbols}


class Embeddings(nn.Module):
    """A caption that a frozen encoder has read: its tokens behind a norm through two layers (as in PixArt-alpha, Chen
    et al. 2023), its pooled vector through two (as in Stable Diffusion 3, Esser et al. 2024), which begin as zero.

    width: of the encoder's tokens and of its pooled vector; output: of what it gives.
    """

    def __init__(self, width: int, output: int) -> None:
        super().__init__()
        self.width = width
        self.norm, self.pooled_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_tokens = nn.Sequential(nn.Linear(width, output), nn.GELU(), nn.Linear(output, output))
        self.up, self.to_vector = nn.Linear(width, output), nn.Linear(output, output)
        for values in (self.to_vector.weight, self.to_vector.bias):  # begins as no condition
            nn.init.zeros_(values)

    def forward(self, condition: Conditions, x: Tensor) -> Embedded:
        """condition["caption"] [n, S, width], "caption/pooled" [n, width], "caption/length" int64 [n] -> vector
        [n, output], tokens [n, S, output] and their mask."""
        tokens, pooled = condition["caption"].float(), condition[POOLED].float()
        mask = torch.arange(tokens.shape[1], device=tokens.device) < condition[LENGTH][:, None]  # [n, S]
        vector = self.to_vector(F.gelu(self.up(self.pooled_norm(pooled))))
        return Embedded(vector, self.to_tokens(self.norm(tokens)), mask)

    def null(self, n: int, device: torch.device | str = "cpu") -> Conditions:
        """One token of zeros for n samples. The empty caption is what the encoder gives for it: the caller has it."""
        zeros = torch.zeros(n, 1, self.width, device=device)
        return {"caption": zeros, POOLED: zeros[:, 0], LENGTH: torch.ones(n, dtype=torch.int64, device=device)}


def masked_mean(h: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens that are there; h [n, S, W], mask bool [n, S] -> [n, W]."""
    weight = mask.to(h.dtype)[..., None]  # [n, S, 1]
    return (h * weight).sum(1) / weight.sum(1)
