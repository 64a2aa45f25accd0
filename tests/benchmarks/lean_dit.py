"""A DiT as lean as plain PyTorch allows: the yardstick of the model's own cost. Same matrix products as `dit-s/2`.

No options, no conditioner, nothing cast: what a step costs over this is what the project's DiT spends on being general.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.patches import sine_positions


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        n, tokens, width = x.shape
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c).unsqueeze(1).chunk(6, dim=-1)
        h = torch.addcmul(shift_a, F.layer_norm(x, (width,)), 1 + scale_a)
        q, k, v = self.qkv(h).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each [n, heads, T, d]
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = torch.addcmul(x, gate_a, self.out(h))
        h = torch.addcmul(shift_m, F.layer_norm(x, (width,)), 1 + scale_m)
        return torch.addcmul(x, gate_m, self.down(F.gelu(self.up(h))))


class LeanDiT(nn.Module):
    """x_t [n, C, size, size], t [n], label [n] -> velocity in patches [n, T, C p p]."""

    positions: Tensor
    frequencies: Tensor

    def __init__(self, width: int, depth: int, heads: int, patch: int, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.patch, self.width = patch, width
        self.embed, self.out = nn.Linear(channels * patch**2, width), nn.Linear(width, channels * patch**2)
        self.time_up, self.time_down = nn.Linear(256, width), nn.Linear(width, width)
        self.classes = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.register_buffer("positions", sine_positions(width, (size // patch, size // patch)))
        self.register_buffer("frequencies", torch.exp(torch.arange(128) * (-math.log(10000) / 128)) * 1000)

    def patches(self, x: Tensor) -> Tensor:
        """[n, C, g p, g p] -> [n, T, C p p]."""
        n, channels, side, _ = x.shape
        p, g = self.patch, side // self.patch
        return x.view(n, channels, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(n, g * g, channels * p * p)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        c = self.time_down(F.silu(self.time_up(torch.cat([angles.cos(), angles.sin()], 1)))) + self.classes(label)
        c = F.silu(c)
        h = self.embed(self.patches(x)) + self.positions
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulation(c).unsqueeze(1).chunk(2, dim=-1)
        velocity: Tensor = self.out(torch.addcmul(shift, F.layer_norm(h, (self.width,)), 1 + scale))
        return velocity


def lean_loss(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rectified flow: the mean squared error of the velocity noise - x0 at (1 - t) x0 + t noise."""
    assert isinstance(model, LeanDiT)
    mean, log_variance = batch["moments"].chunk(2, dim=1)
    x0, t = mean + torch.exp(0.5 * log_variance) * batch["posterior"], batch["u"].float()
    x_t = torch.lerp(x0, batch["noise"], t.view(-1, 1, 1, 1))
    return {"loss": F.mse_loss(model(x_t, t, batch["label"]), model.patches(batch["noise"] - x0))}
