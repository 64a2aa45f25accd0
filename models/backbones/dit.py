"""DiT: a transformer over patches whose norms the time and the condition steer (adaLN-zero).

Peebles and Xie 2023, "Scalable Diffusion Models with Transformers"; widths and depths of the presets are theirs, the
tiny ones are ours. What the output means (eps, x0, v, velocity) is not known here: see diffusion/objectives.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.conditioning import Embedded
from models.layers import MLP, Attention, TimeEmbedding, gated_sum, modulated_norm, sine_positions


@dataclass(frozen=True)
class Config:
    """Shape of a DiT."""

    width: int = 384  # channels of a token; a multiple of heads and of 4
    depth: int = 12  # blocks
    heads: int = 6  # attention heads
    patch: int = 2  # a token is a square of this many latent pixels a side
    mlp_ratio: float = 4.0  # hidden width of the MLP over width
    qk_norm: bool = False  # RMS norm of queries and keys: keeps attention from saturating in long or low precision runs

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of width {self.width}, got {self.heads}")
        if self.width % 4:
            raise ValueError(f"width: expected a multiple of 4, got {self.width}")
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio: expected more than 0, got {self.mlp_ratio}")


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


def flops(config: Config, channels: int, size: int) -> int:
    """FLOPs (two a multiply-add) of the matrix products of one sample's forward pass; latents [channels, size, size].

    A training step costs three times this. Norms, sines and the class table are left out, as is usual.
    """
    tokens, width, pixels = (size // config.patch) ** 2, config.width, channels * config.patch**2
    hidden = int(config.mlp_ratio * width)
    attention = 4 * tokens * width * width + 2 * tokens * tokens * width  # qkv and out; scores and their sum
    block = attention + 2 * tokens * width * hidden + 6 * width * width
    ends = 2 * tokens * pixels * width + 2 * width * width + (256 + width) * width  # patches, last norm, time
    return 2 * (config.depth * block + ends)


class Block(nn.Module):
    """Attention and MLP, each behind a modulated norm and a gate that starts at zero: a new block is the identity."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads, config.qk_norm)
        self.mlp = MLP(config.width, int(config.mlp_ratio * config.width))
        self.modulation = nn.Linear(config.width, 6 * config.width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x [n, T, D], c [n, D] (after SiLU) -> [n, T, D]."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c).chunk(6, dim=-1)  # [n, D] each
        x = gated_sum(x, gate_a, self.attention(modulated_norm(x, shift_a, scale_a)))
        return gated_sum(x, gate_m, self.mlp(modulated_norm(x, shift_m, scale_m)))


class Model(nn.Module):
    """(x, t, condition) -> prediction. `condition_width` is the width of the vector that it expects."""

    def __init__(self, config: Config, channels: int, size: int) -> None:
        super().__init__()
        if size % config.patch:
            raise ValueError(f"patch: expected a divisor of the latent size {size}, got {config.patch}")
        self.patch, self.channels, self.grid = config.patch, channels, size // config.patch
        self.condition_width = config.width
        self.activation_checkpointing = False  # recompute each block in the backward pass; the caller may set it
        self.embed = nn.Linear(channels * config.patch**2, config.width)
        self.time = TimeEmbedding(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, channels * config.patch**2)
        self.register_buffer("positions", sine_positions(config.width, self.grid, self.grid), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier for the products; zero for every modulation and the output (the zero of adaLN-zero)."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear) and not name.startswith("time."):
                if name.split(".")[-1] == "modulation" or name == "out":
                    nn.init.zeros_(layer.weight)
                else:
                    nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, condition: Embedded) -> Tensor:
        """x [n, C, size, size], t [n] in [0, 1], condition.vector [n, D] -> float32 [n, C, size, size]."""
        n, p, g = x.shape[0], self.patch, self.grid
        # [n, C, g p, g p] -> [n, C, g, p, g, p] -> [n, g, g, C, p, p] -> [n, T, C p p]
        patches = x.reshape(n, self.channels, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(n, g * g, -1)
        h = self.embed(patches) + self.positions  # [n, T, D]
        c = F.silu(self.time(t).float() + condition.vector.float())  # [n, D]
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                # There is no dropout, so there is no random state to keep.
                h = checkpoint(block, h, c, use_reentrant=False, preserve_rng_state=False)
            else:
                h = block(h, c)
        shift, scale = self.modulation(c).chunk(2, dim=-1)  # [n, D] each
        y = self.out(modulated_norm(h, shift, scale)).float()  # [n, T, C p p]
        # [n, T, C p p] -> [n, g, g, C, p, p] -> [n, C, g, p, g, p] -> [n, C, g p, g p]
        y = y.reshape(n, g, g, self.channels, p, p).permute(0, 3, 1, 4, 2, 5)
        image: Tensor = y.reshape(n, self.channels, g * p, g * p)
        return image
