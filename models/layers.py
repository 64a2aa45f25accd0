"""Layers that several networks share: modulated norms, attention, MLP, embeddings of time and place, layers of maps.

Every shape stands beside its reshape. Norms, embeddings and softmax compute in float32 under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TIME_SCALE = 1000.0  # t in [0, 1] is embedded as 1000 t: the frequencies were made for DDPM's 1,000 steps


def run(block: nn.Module, *inputs: Any, recompute: bool = False) -> Any:
    """block(*inputs); with `recompute` its activations are not kept but computed again in the backward pass.

    The blocks here have no dropout, so there is no random state to keep.
    """
    if not recompute:
        return block(*inputs)
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, rms: bool = False) -> Tensor:
    """LayerNorm without weights, then x * (1 + scale) + shift: adaLN. x [n, T, D], shift and scale [n, D].

    rms: divide by the root mean square only, the mean stays (Zhang and Sennrich 2019).
    """
    norm = F.rms_norm if rms else F.layer_norm
    normed = norm(x.float(), x.shape[-1:], eps=eps)
    return torch.addcmul(shift.float().unsqueeze(1), normed, 1.0 + scale.float().unsqueeze(1))  # one pass over memory


def gated_sum(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate * branch; x and branch [n, T, D], gate [n, D]. The residual stream stays in float32."""
    return torch.addcmul(x, gate.to(x.dtype).unsqueeze(1), branch.to(x.dtype))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: q [n, heads, T, d], k and v [n, heads, S, d], mask bool of what is seen, broadcast to
    [n, heads, T, S] -> [n, heads, T, d]. Softmax in float32.

    Written out, with scores in bf16, where torch's own is slow: in bf16 on a CPU its backward pass takes six times that
    of fp32, and three to ten times these products (torch 2.13, 64 tokens, AMD with AVX512-BF16).
    """
    if not (q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [n, heads, T, S]
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.float().softmax(dim=-1).to(v.dtype) @ v  # type: ignore[no-any-return]


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)), what `attend` weighs values with, a mean over heads: float32 [n, T, S]; q [n, heads, T,
    d], k [n, heads, S, d], mask as there."""
    scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-1, -2)  # [n, heads, T, S]
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1).mean(1)  # type: ignore[no-any-return]


def in_heads(x: Tensor, heads: int, parts: int = 1) -> list[Tensor]:
    """x [n, T, parts D] -> `parts` views [n, heads, T, d]; nothing is copied, and backward joins them once."""
    n, tokens, width = x.shape
    return [p.view(n, tokens, heads, -1).transpose(1, 2) for p in x.split(width // parts, dim=-1)]


def out_of_heads(x: Tensor) -> Tensor:
    """[n, heads, T, d] -> [n, T, D]."""
    return x.transpose(1, 2).flatten(2)


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

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None) -> Tensor:
        """x [n, T, D], rotation (`patches.rotary`) or none, mask bool [n, T] of tokens that are there -> [n, T, D]."""
        seen = None if mask is None else mask[:, None, None]  # [n, 1, 1, T]
        # [n, heads, T, d], softmax in float32
        y = attend(*self.projected(x, rotation), seen)
        return self.out(out_of_heads(y))  # type: ignore[no-any-return]

    def projected(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x [n, T, D], each [n, heads, T, d]."""
        q, k, v = in_heads(self.qkv(x), self.heads, 3)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q.float()).to(v.dtype), self.key_norm(k.float()).to(v.dtype)
        if rotation is not None:
            q, k = rotate(q, rotation).to(v.dtype), rotate(k, rotation).to(v.dtype)
        return q, k, v


class CrossAttention(nn.Module):
    """Queries of one sequence over keys and values of another, of `context` channels (default: as many). The last
    product begins as zero.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = False, context: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context or width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else None
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else None

    def forward(
        self, x: Tensor, tokens: Tensor, mask: Tensor | None = None, looks: list[Tensor] | None = None
    ) -> Tensor:
        """x [n, T, D] (normalised here, without weights), tokens [n, S, context], mask bool [n, S] -> [n, T, D]. looks:
        gets `attention_weights` [n, T, S] appended."""
        (q,) = in_heads(self.query(F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)), self.heads)
        k, v = in_heads(self.key_value(tokens), self.heads, 2)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q.float()).to(v.dtype), self.key_norm(k.float()).to(v.dtype)
        seen = None if mask is None else mask[:, None, None]  # [n, 1, 1, S]
        if looks is not None:
            looks.append(attention_weights(q, k, seen))
        y = attend(q, k, v, seen)
        return self.out(out_of_heads(y))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two linear layers with a GELU between them: "none", the exact one, on a CPU twice as fast as the approximation
    by a "tanh".
    """

    def __init__(self, width: int, hidden: int, approximate: str = "none") -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        return self.down(F.gelu(self.up(x), approximate=self.approximate))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside a shortcut (Xiong et al. 2020, "On Layer Normalization in the
    Transformer Architecture")."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [n, S, W], mask bool [n, S] of the tokens that are there (default: all) -> [n, S, W]."""
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class Causal(Layer):
    """A layer in which a token sees itself and those before it."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [n, S, W], mask bool [S, S] of what each token sees -> [n, S, W]."""
        q, k, v = self.attention.projected(self.attention_norm(x))
        x = x + self.attention.out(out_of_heads(attend(q, k, v, mask)))
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]

    def following(self, x: Tensor, before: tuple[Tensor, ...] = ()) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What `forward` gives of one token more, [n, 1, W]; keys and values of those before it, each [n, heads, S, d],
        go in and come out with its own."""
        q, *own = self.attention.projected(self.attention_norm(x))
        k, v = (torch.cat(pair, 2) for pair in zip(before, own, strict=True)) if before else own
        x = x + self.attention.out(out_of_heads(attend(q, k, v)))
        return x + self.mlp(self.mlp_norm(x)), (k, v)


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020, "GLU Variants Improve Transformer"): down(SiLU(a) b), with [a, b] = up(x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        a, b = self.up(x).chunk(2, dim=-1)  # [..., hidden] each
        return self.down(F.silu(a) * b)  # type: ignore[no-any-return]


def time_features(t: Tensor, width: int, shift: int = 0) -> Tensor:
    """cos and sin of 1000 t at `width / 2` frequencies from 1 down to 1/10000; t [n] in [0, 1] -> float32 [n, width].

    Vaswani et al. 2017, section 3.5, as DDPM and its successors use it. shift: with 1 the last frequency is 1/10000
    itself, with 0 the one after it would be; both are in use.
    """
    half = width // 2
    step = -math.log(10000.0) / (half - shift)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * step)
    angles = TIME_SCALE * t.float()[:, None] * frequencies[None]  # [n, half]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """t [n] in [0, 1] -> [n, width]: sines, then two linear layers."""

    def __init__(self, width: int, features: int = 256, shift: int = 0) -> None:
        super().__init__()
        self.features, self.shift = features, shift
        self.up = nn.Linear(features, width)
        self.down = nn.Linear(width, width)
        nn.init.normal_(self.up.weight, std=0.02)
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.up.bias)
        nn.init.zeros_(self.down.bias)

    def forward(self, t: Tensor) -> Tensor:
        """t [n] -> [n, width]."""
        return self.down(F.silu(self.up(time_features(t, self.features, self.shift))))  # type: ignore[no-any-return]


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Each pair (channel i, channel i + d/2) of x [n, heads, T, d], turned by its angle, in float32."""
    cos, sin = rotation
    first, second = x.float().chunk(2, dim=-1)  # [n, heads, T, d / 2] each
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


# ---- maps ------------------------------------------------------------------------------------------------------------


class SpatialAttention(nn.Module):
    """Self-attention over the pixels of a map, beside a shortcut; heads of `head_width` channels, by default one."""

    def __init__(
        self, channels: int, groups: int, head_width: int | None = None, eps: float = 1e-6, norm: bool = True
    ) -> None:
        super().__init__()
        if channels % (head_width or channels):
            raise ValueError(f"head_width: expected a divisor of {channels} channels, got {head_width}")
        self.heads = channels // (head_width or channels)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps) if norm else None
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # a list, for the name `to_out.0`

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, c, h, w]."""
        n, channels, height, width = x.shape
        y = x if self.group_norm is None else self.group_norm(x)
        y = y.flatten(2).transpose(1, 2)  # [n, c, h, w] -> [n, h w, c]
        # [n, h w, c] -> [n, h w, heads, d] -> [n, heads, h w, d]
        q, k, v = (to(y).view(n, -1, self.heads, channels // self.heads).transpose(1, 2)
                   for to in (self.to_q, self.to_k, self.to_v))  # fmt: skip
        y = attend(q, k, v).transpose(1, 2).reshape(n, -1, channels)
        y = self.to_out[0](y).transpose(1, 2).reshape(n, channels, height, width)  # [n, h w, c] -> [n, c, h, w]
        return x + y  # type: ignore[no-any-return]


class SpatialCrossAttention(nn.Module):
    """Attention of the pixels of a map to tokens of `context` channels, beside a shortcut. Begins as the shortcut."""

    def __init__(self, channels: int, head_width: int | None, context: int) -> None:
        super().__init__()
        self.attention = CrossAttention(channels, channels // (head_width or channels), context=context)

    def forward(
        self, x: Tensor, tokens: Tensor, mask: Tensor | None = None, looks: list[Tensor] | None = None
    ) -> Tensor:
        """x [n, c, h, w], tokens [n, S, context], mask bool [n, S] of those that are there -> [n, c, h, w]. looks: gets
        the attention float32 [n, S, h, w] appended, a mean over heads."""
        pixels = x.flatten(2).transpose(1, 2)  # [n, c, h, w] -> [n, h w, c]
        y = self.attention(pixels, tokens, mask, looks)
        if looks is not None:
            looks[-1] = on_map(looks[-1], x.shape[2:])
        return x + y.transpose(1, 2).reshape(x.shape)  # type: ignore[no-any-return]


def on_map(weights: Tensor, sides: Sequence[int]) -> Tensor:
    """Attention of places to tokens [n, T, S] -> a map a token [n, S, *sides]."""
    return weights.transpose(1, 2).unflatten(2, tuple(sides))  # type: ignore[no-any-return]


class Halve(nn.Module):
    """A stride 2 convolution over a map padded on all sides, or (padding 0) on its right and lower edges only."""

    def __init__(self, channels: int, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, c, h / 2, w / 2]."""
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Double(nn.Module):
    """Nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, c, 2 h, 2 w]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]
