"""DiT: a transformer over patches whose norms the time and the condition steer (adaLN-zero).

Peebles and Xie 2023, "Scalable Diffusion Models with Transformers"; widths and depths of the presets are theirs, the
tiny ones are ours. It may attend to a caption (`tokens`), by cross-attention or, as MM-DiT, in two streams. Latents
have one, two or three sides (models/patches.py). What the output means (eps, x0, v, velocity) is not known here: see
diffusion/objectives.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.conditioning import Embedded
from models.layers import (
    MLP,
    Attention,
    CrossAttention,
    GatedMLP,
    TimeEmbedding,
    attend,
    attention_weights,
    gated_sum,
    in_heads,
    modulated_norm,
    on_map,
    out_of_heads,
    run,
)
from models.patches import Positions, Size, grid_of, patched, sides_of, unpatched
from models.registry import later
from models.routing import Route


@dataclass(frozen=True)
class Config:
    """Shape of a DiT."""

    width: int = 384  # channels of a token; a multiple of heads and of 4
    depth: int = 12  # blocks
    heads: int = 6  # attention heads
    patch: int = 2  # a token is a square of this many latent pixels a side, or as many places of a sequence
    mlp_ratio: float = 4.0  # hidden width of the MLP over width
    qk_norm: bool = False  # RMS norm of queries and keys: keeps attention from saturating in long or low precision runs
    rope: bool = False  # rotary positions in every attention, in place of fixed sines added to the tokens
    rms_norm: bool = False  # the modulated norms divide by the root mean square only and leave the mean
    long_skips: bool = False  # block i of the second half also gets what the i-th last of the first half gave (U-ViT)
    # What diffusers' DiT does differently; a preset of ours that it can load has frequency_shift 1.
    frequency_shift: int = 0  # 1: the last frequency of the time is 1/10000, 0: the one after it would be, as in DiT
    gelu: str = "exact"  # of the MLP: "exact", or "tanh", its approximation
    mlp_eps: float = 1e-6  # epsilon of the norm before the MLP
    own_embeddings: bool = False  # each block embeds time and condition by itself
    swiglu: bool = later(False)  # SwiGLU in place of GELU in every MLP, at two thirds of its hidden width
    tokens: str = later("none")  # of a caption: "cross", attended to behind self-attention; "joint", a stream beside
    frames: int = later(1)  # of latents of three sides, time first: places of a token along time

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of width {self.width}, got {self.heads}")
        if self.width % 4:
            raise ValueError(f"width: expected a multiple of 4, got {self.width}")
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio: expected more than 0, got {self.mlp_ratio}")
        if self.swiglu and self.gelu != "exact":
            raise ValueError(f"swiglu: takes the place of gelu; leave out gelu {self.gelu!r}")
        if self.tokens not in ("none", "cross", "joint"):
            raise ValueError(f"tokens: expected 'none', 'cross' or 'joint', got {self.tokens!r}")
        if self.tokens != "none" and self.own_embeddings:
            raise ValueError("tokens: a DiT with own_embeddings, as diffusers has it, has no place for them")
        if self.gelu not in ("exact", "tanh"):
            raise ValueError(f"gelu: expected 'exact' or 'tanh', got {self.gelu!r}")
        if self.rope and self.width // self.heads % 4:
            raise ValueError(f"rope: expected a multiple of 4 channels a head, got {self.width // self.heads}")

    def patches(self, count: int) -> tuple[int, ...]:
        """Sides of a token's patch, of latents of `count` sides. ValueError where `frames` has no time to go along."""
        if count != 3 and self.frames != 1:
            raise ValueError(f"frames: {self.frames} given, of latents of three sides, time first; these have {count}")
        return (self.frames, self.patch, self.patch) if count == 3 else (self.patch,) * count

    @property
    def hidden(self) -> int:
        """Hidden width of an MLP. SwiGLU has three products: two thirds, up to a multiple of 8, cost the same."""
        plain = int(self.mlp_ratio * self.width)
        return -(-2 * plain // 24) * 8 if self.swiglu else plain


# size: (width, depth, heads), then parameters and forward FLOPs a sample on 4x32x32 latents at patch 2 (two FLOPs to
# each multiply-add of the paper's table).
SIZES = {
    "xxs": (96, 4, 3),  # 0.7 M, 0.3 G; for a CPU
    "xs": (192, 6, 3),  # 4.2 M, 1.7 G; for a CPU with patience
    "s": (384, 12, 6),  # 32 M, 12 G
    "b": (768, 12, 12),  # 130 M, 46 G
    "l": (1024, 24, 16),  # 457 M, 161 G
    "xl": (1152, 28, 16),  # 674 M, 237 G
}
PRESETS = {
    f"dit-{size}/{patch}": {"width": width, "depth": depth, "heads": heads, "patch": patch}
    for size, (width, depth, heads) in SIZES.items()
    for patch in (1, 2, 4, 8)
}
# What Yao et al. 2025 ("Reconstruction vs. Generation: Taming Optimization Dilemma in Latent Diffusion Models",
# LightningDiT) change in the blocks; they train with betas [0.9, 0.95], `diffusion.cosine: 1` and logit-normal times.
MODERN = {"swiglu": True, "rms_norm": True, "rope": True, "qk_norm": True}
PRESETS |= {
    f"lightning-{size}/{patch}": {**PRESETS[f"dit-{size}/{patch}"], **MODERN} for size in SIZES for patch in (1, 2)
}
# At patch 2 also for `ldm export --format diffusers`, which has no place for other frequencies of the time.
PRESETS |= {f"diffusers-{size}/2": {**PRESETS[f"dit-{size}/2"], "frequency_shift": 1} for size in SIZES}


def flops(config: Config, channels: int, size: Size, caption: int = 0, beside: int = 0) -> int:
    """FLOPs (two a multiply-add) of the matrix products of one sample's forward pass; latents [channels, *sides],
    tokens of the caption that is attended to, channels beside the latents.

    A training step costs three times this. Norms, sines and the class table are left out, as is usual.
    """
    sides = sides_of(size)
    patch = config.patches(len(sides))
    tokens = math.prod(side // p for side, p in zip(sides, patch, strict=True))
    width, pixels = config.width, channels * math.prod(patch)
    hidden = config.hidden * (3 if config.swiglu else 2)  # of an MLP's products
    attention = 4 * tokens * width * width + 2 * tokens * tokens * width  # qkv and out; scores and their sum
    block = attention + tokens * width * hidden + 6 * width * width
    if config.tokens == "cross":  # queries and out; keys and values; scores and their sum
        block += 2 * tokens * width * width + 2 * caption * width * width + 2 * tokens * caption * width
    joint = 0
    if config.tokens == "joint":  # the caption's share of each block; of the last one's keys and values only
        pairs = (tokens + caption) ** 2 - tokens**2
        own = 4 * caption * width * width + caption * width * hidden + 6 * width * width
        last = 2 * (caption + 1) * width * width + 2 * tokens * caption * width
        joint = (config.depth - 1) * (own + 2 * pairs * width) + last
    ends = (2 * pixels + beside * math.prod(patch)) * tokens * width + 2 * width * width  # patches, last norm
    times = (config.depth if config.own_embeddings else 1) * (256 + width) * width
    skips = config.depth // 2 * 2 * tokens * width * width if config.long_skips else 0
    return 2 * (config.depth * block + joint + ends + times + skips)


class Stream(nn.Module):
    """What a block does to one kind of tokens: attention and MLP, each behind a modulated norm and a gate."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads, config.qk_norm)
        self.mlp: nn.Module = (
            GatedMLP(config.width, config.hidden)
            if config.swiglu
            else MLP(config.width, config.hidden, "tanh" if config.gelu == "tanh" else "none")
        )
        self.modulation = nn.Linear(config.width, 6 * config.width)
        self.rms, self.mlp_eps = config.rms_norm, config.mlp_eps

    def normed(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """What attention is given of x [n, T, D]; shift and scale [n, D]."""
        return modulated_norm(x, shift, scale, rms=self.rms)

    def through_mlp(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        """x [n, T, D]; shift, scale and gate [n, D]."""
        return gated_sum(x, gate, self.mlp(modulated_norm(x, shift, scale, self.mlp_eps, self.rms)))


class Block(Stream):
    """A stream that attends to itself, and to a caption. The gates start at zero: a new block is the identity."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        # After self-attention, neither modulated nor gated, as in PixArt-alpha (Chen et al. 2023, section 2.3)
        self.cross = CrossAttention(config.width, config.heads, config.qk_norm) if config.tokens == "cross" else None

    def forward(
        self, x: Tensor, c: Tensor, rotation: tuple[Tensor, Tensor] | None = None, tokens: Tensor | None = None,
        mask: Tensor | None = None, there: Tensor | None = None, looks: list[Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """x [n, T, D], c [n, D] (after SiLU), rotation of queries and keys or none; of the caption tokens [n, S, D] and
        mask bool [n, S]; there: bool [n, T], which of x's tokens are attended to (none: all) -> [n, T, D]. looks: gets
        the attention to the caption [n, T, S] appended."""
        shift, scale, gate, *of_mlp = self.modulation(c).chunk(6, dim=-1)  # [n, D] each
        x = gated_sum(x, gate, self.attention(self.normed(x, shift, scale), rotation, there))
        if self.cross is not None:
            x = x + self.cross(x, tokens, mask, looks).to(x.dtype)
        return self.through_mlp(x, *of_mlp)


class LastCaption(nn.Module):
    """A caption in the last joint block, which gives nothing of it: keys and values, behind a modulated norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.rms = config.heads, config.rms_norm
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.key_norm = nn.RMSNorm(config.width // config.heads, eps=1e-6) if config.qk_norm else None

    def forward(self, tokens: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [n, S, D], c [n, D] -> keys and values [n, heads, S, d]."""
        shift, scale = self.modulation(c).chunk(2, dim=-1)  # [n, D] each
        k, v = in_heads(self.key_value(modulated_norm(tokens, shift, scale, rms=self.rms)), self.heads, 2)
        return (k if self.key_norm is None else self.key_norm(k.float()).to(v.dtype)), v


class JointBlock(Stream):
    """MM-DiT: the streams of image and caption, each with weights of its own, meet in one attention over both.

    Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", section 4. The image's
    weights bear the names that they have in `Block`. A new block is the identity.
    """

    def __init__(self, config: Config, last: bool) -> None:
        super().__init__(config)
        self.caption = LastCaption(config) if last else Stream(config)

    def forward(
        self, x: Tensor, c: Tensor, rotation: tuple[Tensor, Tensor] | None, tokens: Tensor, mask: Tensor | None,
        there: Tensor | None = None, looks: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `Block`; the rotation is that of the image's -> x [n, T, D], tokens [n, S, D] (the last block's as they
        came). Rows of tokens that are not there are made as well; nothing attends to them.
        """
        count, caption = x.shape[1], self.caption
        if there is not None:
            mask = torch.cat([there, there.new_ones(tokens.shape[:2]) if mask is None else mask], 1)  # [n, T + S]
        elif mask is not None:
            mask = F.pad(mask, (count, 0), value=True)
        seen = None if mask is None else mask[:, None, None]  # [n, 1, 1, T + S]
        shift, scale, gate, *of_mlp = self.modulation(c).chunk(6, dim=-1)  # [n, D] each
        q, k, v = self.attention.projected(self.normed(x, shift, scale), rotation)  # [n, heads, T, d] each
        if isinstance(caption, LastCaption):
            keys, values = caption(tokens, c)
        else:
            shift, scale, told_gate, *told_mlp = caption.modulation(c).chunk(6, dim=-1)
            queries, keys, values = caption.attention.projected(caption.normed(tokens, shift, scale))
            q = torch.cat([q, queries], dim=2)  # [n, heads, T + S, d]
        k, v = torch.cat([k, keys], dim=2), torch.cat([v, values], dim=2)
        if looks is not None:
            looks.append(attention_weights(q[:, :, :count], k, seen)[:, :, count:])  # [n, T, T + S] -> [n, T, S]
        y = out_of_heads(attend(q, k, v, seen))  # [n, T or T + S, D]
        x = self.through_mlp(gated_sum(x, gate, self.attention.out(y[:, :count])), *of_mlp)
        if not isinstance(caption, LastCaption):
            tokens = caption.through_mlp(gated_sum(tokens, told_gate, caption.attention.out(y[:, count:])), *told_mlp)
        return x, tokens


class Skip(nn.Module):
    """Joins a long skip: a linear map of [x, skip], which begins as x alone. Bao et al. 2023, "All are Worth Words"."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Two times [n, T, D] -> [n, T, D]."""
        return self.mix(torch.cat([x, skip], dim=-1))  # type: ignore[no-any-return]


class Model(nn.Module):
    """(x, t, condition) -> prediction. `condition_width` is the width of the vector that it expects.

    Made for latents of `size` (a number: of a square); takes any of as many sides that the patch divides, with the same
    weights: rows and columns of another grid lie over the middle of its own, sequences and time begin where its own do.
    beside: channels that come with x, and do not come out.
    """

    takes_places = True  # latents of unequal length in a batch (`Embedded.places`)

    def __init__(self, config: Config, channels: int, size: Size, beside: int = 0) -> None:
        super().__init__()
        self.config, self.channels, self.sides = config, channels, sides_of(size)
        self.patch = config.patches(len(self.sides))  # of a token, along each side
        self.grid = grid_of(self.sides, self.patch)
        pixels = math.prod(self.patch)
        embeddings = config.depth if config.own_embeddings else 1
        self.condition_width = config.width * embeddings
        self.attends = config.tokens != "none"  # to a caption's tokens, which then are part of every condition
        self.rms = config.rms_norm
        self.activation_checkpointing = False  # recompute each block in the backward pass; the caller may set it
        self.embed = nn.Linear(channels * pixels, config.width)
        self.time = TimeEmbedding(config.width, shift=config.frequency_shift)
        if config.own_embeddings:
            self.own_times = nn.ModuleList(
                TimeEmbedding(config.width, shift=config.frequency_shift) for _ in range(config.depth - 1)
            )
        self.joint = config.tokens == "joint"
        self.blocks = nn.ModuleList(
            JointBlock(config, last=i == config.depth - 1) if self.joint else Block(config) for i in range(config.depth)
        )
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, channels * pixels)
        if config.long_skips:
            self.skips = nn.ModuleList(Skip(config.width) for _ in range(config.depth // 2))
        self.long_skips, self.own_embeddings = config.long_skips, config.own_embeddings
        self.positions = Positions(config.width, config.heads, self.grid, config.rope)
        self._initialise()
        # The first layer's weights for what is concatenated to x, kept apart: they begin as zero, so that a network
        # which did not know these channels stays what it was, name by name.
        self.embed_beside = nn.Linear(beside * pixels, config.width, bias=False) if beside else None
        if self.embed_beside is not None:
            nn.init.zeros_(self.embed_beside.weight)

    def _initialise(self) -> None:
        """Xavier for the products; zero for every modulation and the output (the zero of adaLN-zero)."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear) and not name.startswith(("time.", "own_times.")):
                if name.split(".")[-1] == "modulation" or name == "out" or name.endswith("cross.out"):
                    nn.init.zeros_(layer.weight)
                elif name.startswith("skips."):
                    nn.init.eye_(layer.weight)  # [D, 2D]: x as it is, nothing of the skip
                else:
                    nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self, x: Tensor, t: Tensor, condition: Embedded, route: Route | None = None,
        depths: tuple[int, ...] | None = None, answer: bool = True, looks: list[Tensor] | None = None,
    ) -> Tensor | tuple[Tensor | None, tuple[Tensor, ...]]:  # fmt: skip
        """x [n, C, *sides], t [n] in [0, 1], condition.vector [n, D], tokens [n, S, D] if it attends, channels
        [n, beside, *sides] if there are any -> float32 [n, C, *sides]; with `depths`, rising, beside it the tokens
        [n, T, D] behind that many blocks each, or (no `answer`) these alone, without the blocks after them. route: of
        the tokens past some blocks. looks: gets appended, of each block that attends to the caption, how places look at
        its tokens: float32 [n, S, *grid], over S 1, or what joint attention leaves the caption. What x holds where
        condition.places says that nothing is changes no answer elsewhere."""
        if x.dim() != 2 + len(self.sides):
            raise ValueError(f"size: made for latents of sides {self.sides}, got {tuple(x.shape[2:])}")
        grid, places, there = grid_of(x.shape[2:], self.patch), condition.places, None
        if places is not None:
            x = x.masked_fill(~places[:, None], 0.0)
            there = patched(places[:, None], self.patch).any(-1)  # [n, T]
        h = self.embed(patched(x, self.patch))  # [n, T, D]
        if self.embed_beside is not None and condition.channels is not None:
            h = h + self.embed_beside(patched(condition.channels, self.patch))
        positions, rotation = self.positions.of(grid, x.device)
        if positions is not None:
            h = h + positions
        embedded = self._embed(t, condition.vector)  # [n, D] for every block
        tokens = condition.tokens if self.attends else None
        if self.joint and tokens is not None:
            tokens = tokens.float()  # a residual stream, as the image's
        looked: list[Tensor] | None = None if looks is None else []  # of each block [n, T, S]
        if route and there is not None:
            raise ValueError("route: not for latents of unequal length; leave it out")
        if route and self.long_skips:
            raise ValueError("long_skips: they join tokens of all places; route none of them past blocks")
        past, turns = h, rotation
        inner: list[Tensor] = []
        kept: list[Tensor] = []  # what the first half gave, for the long skips
        half = len(self.blocks) // 2
        for i, (block, c) in enumerate(zip(self.blocks, embedded, strict=True)):
            if route and i == route.first:
                past, h, rotation = h, route.leave(h), route.turned(turns)
            if self.long_skips and i >= len(self.blocks) - half:
                h = self.skips[i - len(self.blocks) + half](h, kept.pop())
            told = (tokens, condition.mask, there, looked)
            h = run(block, h, c, rotation, *told, recompute=self.activation_checkpointing and self.training)
            if self.joint:
                h, tokens = h
            if self.long_skips and i < half:
                kept.append(h)
            if route and i + 1 == route.end:
                h, rotation = route.join(past, h), turns
            if depths and i + 1 in depths:
                amid = route is not None and route.first <= i and i + 1 < route.end
                inner.append(route.join(past, h) if route and amid else h)
                if not answer and len(inner) == len(depths):
                    return None, tuple(inner)
        if looks is not None and looked:
            looks += [on_map(each, grid) for each in looked]
        c = embedded[0]
        shift, scale = self.modulation(c).chunk(2, dim=-1)  # [n, D] each
        y = self.out(modulated_norm(h, shift, scale, rms=self.rms)).float()  # [n, T, C p p]
        latents = unpatched(y, grid, self.patch)
        return latents if depths is None else (latents, tuple(inner))

    def _embed(self, t: Tensor, vector: Tensor) -> list[Tensor]:
        """t [n] and the condition [n, D] or, with own embeddings, [n, depth D] -> SiLU of their sum, one a block."""
        if not self.own_embeddings:
            return [F.silu(self.time(t).float() + vector.float())] * len(self.blocks)
        times = (self.time, *self.own_times)
        vectors = vector.float().chunk(len(times), dim=-1)  # [n, D] each
        return [F.silu(time(t).float() + v) for time, v in zip(times, vectors, strict=True)]
