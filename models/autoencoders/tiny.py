"""Tiny autoencoder (Bohan 2023, "TAESD"): plain convolutions that imitate another autoencoder's latents.

Parameters bear the names of diffusers' `AutoencoderTiny`. Its latents are not drawn: the encoder gives no variance. It
is here for published weights (`ldm import`), to be frozen; distilling one is left to others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import posterior


@dataclass(frozen=True)
class Config:
    """Shape of a tiny autoencoder. It shrinks each side by 2 ** (len(encoder) - 1)."""

    width: int = 64  # channels of all layers
    encoder: tuple[int, ...] = (1, 3, 3, 3)  # residual blocks at each resolution, the image's first
    decoder: tuple[int, ...] = (3, 3, 3, 1)  # likewise, the latent's first
    latent_channels: int = 4  # channels of a latent

    def __post_init__(self) -> None:
        if len(self.encoder) != len(self.decoder) or not self.encoder or min(*self.encoder, *self.decoder) < 0:
            raise ValueError("encoder: expected numbers of blocks for as many resolutions as the decoder has")
        if min(self.width, self.latent_channels) < 1:
            raise ValueError(f"width: expected at least 1, got {min(self.width, self.latent_channels)}")


class Block(nn.Module):
    """Three convolutions beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = [_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)]
        self.conv = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        """[n, width, h, w] -> the same."""
        return torch.relu(self.conv(x) + x)


def _conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride, bias=bias)


class Stack(nn.Module):
    """Layers by number, as diffusers names them."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, c', h', w']."""
        return self.layers(x)  # type: ignore[no-any-return]


class Model(nn.Module):
    """Images in [-1, 1] <-> raw latents (never scaled here)."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.config, self.channels, self.latent_channels = config, channels, config.latent_channels
        self.factor = 2 ** (len(config.encoder) - 1)  # image side over latent side
        width = config.width
        down: list[nn.Module] = [_conv(channels, width)]
        for i, blocks in enumerate(config.encoder):
            down += [_conv(width, width, stride=2, bias=False)] if i else []
            down += [Block(width) for _ in range(blocks)]
        up: list[nn.Module] = [_conv(config.latent_channels, width), nn.ReLU()]
        for i, blocks in enumerate(config.decoder):
            up += [nn.Upsample(scale_factor=2), _conv(width, width, bias=False)] if i else []
            up += [Block(width) for _ in range(blocks)]
        self.encoder = Stack([*down, _conv(width, config.latent_channels)])
        self.decoder = Stack([*up, _conv(width, channels)])

    @property
    def last_layer(self) -> nn.Module:
        """Whose weights' gradients an adversarial loss is balanced by."""
        return self.decoder.layers[-1]

    def encode(self, x: Tensor) -> Tensor:
        """x [n, channels, H, W] in [-1, 1] -> moments float32 [n, 2C, h, w] without variance."""
        return posterior.certain(self.encoder((x + 1) / 2))  # it sees [0, 1]

    def decode(self, z: Tensor) -> Tensor:
        """z [n, C, h, w] -> images float32 [n, channels, H, W], about [-1, 1]; latents beyond 3 are bent back."""
        return (2 * self.decoder(3 * torch.tanh(z / 3)) - 1).float()  # type: ignore[no-any-return]

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, channels, H, W] -> reconstruction, and moments; nothing is drawn."""
        moments = self.encode(x)
        return self.decode(posterior.split(moments)[0]), moments
