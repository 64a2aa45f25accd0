"""KL autoencoder of latent diffusion: residual blocks, one attention in the middle, halving and doubling by
convolutions.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", appendix G. Parameters bear the
names of diffusers' `AutoencoderKL`, so a state dict goes over as it is, both ways. Losses live in
pipeline/stages/autoencoder.py, the posterior's algebra in models/posterior.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from models import posterior
from models.layers import Double, Halve, SpatialAttention, run


@dataclass(frozen=True)
class Config:
    """Shape of a KL autoencoder. It shrinks each side by 2 ** (len(multipliers) - 1)."""

    width: int = 64  # channels at full resolution; a multiple of groups
    multipliers: tuple[int, ...] = (1, 2, 4)  # channels at each resolution, over width
    blocks: int = 2  # residual blocks at each resolution of the encoder (the decoder has one more)
    latent_channels: int = 4  # channels of a latent
    attention: bool = True  # self-attention in the middle (cost grows with the fourth power of the latent's side)
    groups: int = 32  # groups of the group norms
    quant_conv: bool = True  # 1x1 convolutions on both sides of the latent, as in Stable Diffusion 1 and 2

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "latent_channels", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers: expected one number of at least 1 a resolution, got {self.multipliers}")
        for multiplier in self.multipliers:
            if self.width * multiplier % self.groups:
                raise ValueError(f"groups: expected a divisor of width {self.width} * {multiplier}, got {self.groups}")


def _row(width: int, multipliers: tuple[int, ...], **rest: Any) -> dict[str, Any]:
    return {"width": width, "multipliers": multipliers, **rest}


# Few groups in the tiny ones: a group of a single channel would norm its contrast away.
_TINY: dict[str, Any] = {"blocks": 1, "attention": False, "groups": 8}
# "tiny" is for small images on a CPU, "base" for a GPU; parameters are those for RGB.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny-f1": _row(32, (1,), **_TINY),  # 0.14 M
    "tiny-f2": _row(32, (1, 2), **_TINY),  # 0.62 M
    "tiny-f4": _row(32, (1, 2, 2), **_TINY),  # 0.92 M
    "tiny-f8": _row(32, (1, 2, 2, 4), **_TINY),  # 2.9 M
    "base-f1": _row(128, (1,)),  # 2.8 M
    "base-f2": _row(128, (1, 2)),  # 13 M
    "base-f4": _row(128, (1, 2, 4)),  # 55 M
    "base-f8": _row(128, (1, 2, 4, 4)),  # 84 M, that of Stable Diffusion 1 and 2
}


class Residual(nn.Module):
    """Norm, SiLU, convolution, twice, beside a shortcut (1x1 where the channels change)."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=1e-6)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.conv_shortcut = nn.Conv2d(inputs, outputs, 1)
        self.changes = inputs != outputs

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h, w]."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return (self.conv_shortcut(x) if self.changes else x) + y  # type: ignore[no-any-return]


class Level(nn.Module):
    """Residual blocks at one resolution, then the way to the next one, if there is one."""

    def __init__(self, inputs: int, outputs: int, blocks: int, groups: int, towards: str | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(inputs if i == 0 else outputs, outputs, groups) for i in range(blocks))
        if towards == "down":
            self.downsamplers = nn.ModuleList([Halve(outputs)])
        if towards == "up":
            self.upsamplers = nn.ModuleList([Double(outputs)])
        self.towards = towards
        self.activation_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h', w'], h' = h/2 (down), 2h (up) or h."""
        for block in self.resnets:
            x = run(block, x, recompute=self.activation_checkpointing and self.training)
        if self.towards is None:
            return x
        return (self.downsamplers if self.towards == "down" else self.upsamplers)[0](x)  # type: ignore[no-any-return]


class Middle(nn.Module):
    """Residual, attention, residual at the lowest resolution."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList(Residual(channels, channels, groups) for _ in range(2))
        self.activation_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, c, h, w]."""
        for block in (self.resnets[0], *self.attentions, self.resnets[1]):
            x = run(block, x, recompute=self.activation_checkpointing and self.training)
        return x


class Encoder(nn.Module):
    """Image -> unclamped moments, or whatever `outputs` channels mean."""

    def __init__(self, config: Config, channels: int, outputs: int) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(widths[max(i - 1, 0)], widths[i], config.blocks, config.groups, "down" if i < last else None)
            for i in range(len(widths))
        )
        self.mid_block = Middle(widths[-1], config.groups, config.attention)
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, H, W] -> [n, outputs, h, w]."""
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latent -> image; a mirror of the encoder with one residual block more at each resolution."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        widths = [config.width * m for m in reversed(config.multipliers)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], config.groups, config.attention)
        self.up_blocks = nn.ModuleList(
            Level(widths[max(i - 1, 0)], widths[i], config.blocks + 1, config.groups, "up" if i < last else None)
            for i in range(len(widths))
        )
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """[n, C, h, w] -> [n, channels, H, W]."""
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))  # type: ignore[no-any-return]


class Model(nn.Module):
    """Images in [-1, 1] <-> raw latents (never scaled here)."""

    def __init__(self, config: Config, channels: int, outputs: int | None = None) -> None:
        """outputs: channels that the encoder gives; default: mean and log-variance of each latent channel."""
        super().__init__()
        self.config = config
        self.channels, self.latent_channels = channels, config.latent_channels
        self.factor = 2 ** (len(config.multipliers) - 1)  # image side over latent side
        latent, outputs = config.latent_channels, outputs or 2 * config.latent_channels
        self.encoder = Encoder(config, channels, outputs)
        self.decoder = Decoder(config, channels)
        self.quant_conv = nn.Conv2d(outputs, outputs, 1) if config.quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.quant_conv else None

    @property
    def last_layer(self) -> nn.Conv2d:
        """Whose weights' gradients an adversarial loss is balanced by (models/adversarial.py)."""
        return self.decoder.conv_out

    def encoded(self, x: Tensor) -> Tensor:
        """The encoder's outputs [n, outputs, h, w] for images [n, channels, H, W]; ValueError where they do not fit."""
        if x.shape[1] != self.channels or x.shape[2] % self.factor or x.shape[3] % self.factor:
            expected = f"{self.channels} channels and sides that are multiples of {self.factor}"
            raise ValueError(f"images: expected {expected}, got {tuple(x.shape[1:])}")
        h = self.encoder(x)
        return h if self.quant_conv is None else self.quant_conv(h)  # type: ignore[no-any-return]

    def encode(self, x: Tensor) -> Tensor:
        """x [n, channels, H, W] in [-1, 1] -> moments float32 [n, 2C, h, w]: mean, clamped log-variance."""
        return posterior.clamp(self.encoded(x))

    def decode(self, z: Tensor) -> Tensor:
        """z [n, C, h, w] -> images float32 [n, channels, H, W], about [-1, 1], not clipped."""
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z)).float()  # type: ignore[no-any-return]

    def forward(self, x: Tensor, noise: Tensor, turned: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """x [n, channels, H, W], noise [n, C, h, w] ~ N(0, I) -> reconstruction of a posterior draw, and moments.

        turned: side and quarter turns that the draw is brought to before it is decoded (`posterior.turned`).
        """
        moments = self.encode(x)
        z = posterior.sample(moments, noise)
        return self.decode(z if turned is None else posterior.turned(z, *turned)), moments


def diffusers_config(config: Config, channels: int, size: int) -> dict[str, Any]:
    """The `config.json` with which diffusers' `AutoencoderKL` loads this model's state dict as it is.

    Written for diffusers 0.30 and later. Its `scaling_factor` is left at 1: our latents are normalised by channel,
    elsewhere.
    """
    levels = len(config.multipliers)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [config.width * m for m in config.multipliers],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.blocks,
        "mid_block_add_attention": config.attention,
        "norm_num_groups": config.groups,
        "out_channels": channels,
        "sample_size": size,
        "scaling_factor": 1.0,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": config.quant_conv,
        "use_quant_conv": config.quant_conv,
    }
