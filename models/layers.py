"""Layers that several networks share: modulated norms, attention, MLP, embeddings of time and place.

Every shape stands beside its reshape. Norms, embeddings and softmax compute in float32 under autocast.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_SCALE = 1000.0  # t in [0, 1] is embedded as 1000 t: the frequencies were made for DDPM's 1,000 steps


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without weights, then x * (1 + scale) + shift: adaLN. x [n, T, D], shift and scale [n, D]."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)
    return torch.addcmul(shift.float().unsqueeze(1), normed, 1.0 + scale.float().unsqueeze(1))  # one pass over memory


def gated_sum(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate * branch; x and branch [n, T, D], gate [n, D]. The residual stream stays in float32."""
    return torch.addcmul(x, gate.to(x.dtype).unsqueeze(1), branch.to(x.dtype))


class Attention(nn.Module):
    """Self-attention over [n, T, D] with one fused projection; optional RMS norm of queries and keys (Dehghani et al.
    2023).
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: expected a divisor of width {width}, got {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else None
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """x [n, T, D] -> [n, T, D]."""
        n, tokens, width = x.shape
        # [n, T, 3D] -> 3 x [n, T, D] -> three views [n, heads, T, d]; nothing is copied, and backward joins them once
        q, k, v = (p.view(n, tokens, self.heads, -1).transpose(1, 2) for p in self.qkv(x).split(width, dim=-1))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q.float()).to(v.dtype), self.key_norm(k.float()).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v)  # [n, heads, T, d], softmax in float32
        return self.out(y.transpose(1, 2).reshape(n, tokens, width))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two linear layers with a GELU between them: the exact one, on a CPU twice as fast as the tanh approximation."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        return self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


def time_features(t: Tensor, width: int) -> Tensor:
    """cos and sin of 1000 t at `width / 2` frequencies from 1 down to 1/10000; t [n] in [0, 1] -> float32 [n, width].

    Vaswani et al. 2017, section 3.5, as DDPM and its successors use it.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10000.0) / half))
    angles = TIME_SCALE * t.float()[:, None] * frequencies[None]  # [n, half]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """t [n] in [0, 1] -> [n, width]: sines, then two linear layers."""

    def __init__(self, width: int, features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.up = nn.Linear(features, width)
        self.down = nn.Linear(width, width)
        nn.init.normal_(self.up.weight, std=0.02)
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.up.bias)
        nn.init.zeros_(self.down.bias)

    def forward(self, t: Tensor) -> Tensor:
        """t [n] -> [n, width]."""
        return self.down(F.silu(self.up(time_features(t, self.features))))  # type: ignore[no-any-return]


def sine_positions(width: int, height: int, length: int) -> Tensor:
    """Fixed 2D positions, float32 [height * length, width]: half of the width codes the column, half the row (MAE's
    order).
    """
    if width % 4:
        raise ValueError(f"width: expected a multiple of 4 for 2D sine positions, got {width}")
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows = torch.arange(height, dtype=torch.float64)[:, None] * frequencies  # [height, quarter]
    columns = torch.arange(length, dtype=torch.float64)[:, None] * frequencies  # [length, quarter]
    by_column = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(height, -1, -1)
    by_row = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, length, -1)
    # [height, length, width] -> [tokens, width], row by row
    return torch.cat([by_column, by_row], dim=2).reshape(height * length, width).float()
