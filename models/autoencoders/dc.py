"""Deep compression autoencoder (Chen et al. 2024, "Deep Compression Autoencoder for Efficient High-Resolution Diffusion
Models"): halvings beside a shortcut that folds space into channels, and linear attention at low resolutions.

Parameters bear the names of diffusers' `AutoencoderDC`. Its latents are not drawn: the encoder gives no variance. It is
here for published weights (`ldm import`), to be frozen: batch norms, which some decoders have, keep their statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import posterior


@dataclass(frozen=True)
class Config:
    """Shape of a deep compression autoencoder. It shrinks each side by 2 ** (len(widths) - 1)."""

    widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)  # channels at each resolution
    encoder: tuple[int, ...] = (2, 2, 2, 3, 3, 3)  # blocks at each; first 0: the image is halved as it comes in
    decoder: tuple[int, ...] = (3, 3, 3, 3, 3, 3)  # likewise, the image's resolution first
    attention: tuple[bool, ...] = (False, False, False, True, True, True)  # blocks with attention, else convolutions
    scales: tuple[int, ...] = (5,)  # kernels by which attention gathers queries, keys and values; may be none
    head_width: int = 32  # channels of an attention head
    batch_norm: tuple[bool, ...] = (False,) * 6  # the decoder's blocks of convolutions: batch norm and ReLU
    unshuffle: bool = False  # halve by folding space into channels, else by a stride
    shuffle: bool = False  # double by unfolding channels, else by repeating pixels
    latent_channels: int = 32  # channels of a latent

    def __post_init__(self) -> None:
        for name in ("encoder", "decoder", "attention", "batch_norm"):
            if len(getattr(self, name)) != len(self.widths):
                raise ValueError(f"{name}: expected {len(self.widths)} values, as widths, got {getattr(self, name)}")
        for name in ("widths", "scales", "head_width", "latent_channels"):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,), default=1) < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if len(self.widths) < 2 or min(*self.encoder[1:], *self.decoder[1:]) < 1:
            raise ValueError("encoder: expected at least 2 resolutions, and a block at each but the first")
        if bool(self.encoder[0]) != bool(self.decoder[0]):
            raise ValueError("decoder: expected blocks at the first resolution if and only if the encoder has some")
        if self.widths[-1] % self.latent_channels:
            raise ValueError(f"latent_channels: expected a divisor of {self.widths[-1]}, got {self.latent_channels}")
        for low, high in zip(self.widths, self.widths[1:], strict=False):
            if 4 * low % high:
                raise ValueError(f"widths: expected each to divide 4 times the one before, got {low}, {high}")


class Norm(nn.Module):
    """RMS norm over channels, with weight and bias. Zhang and Sennrich 2019."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> the same."""
        x = x * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-5)
        return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm by its stored statistics, also in training: those of a batch would differ between ranks."""

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        """Stays in evaluation mode."""
        return super().train(False)


class Convolutions(nn.Module):
    """Two convolutions and a norm beside a shortcut."""

    def __init__(self, channels: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = FrozenBatchNorm(channels) if batch_norm else Norm(channels)
        self.activation = F.relu if batch_norm else F.silu

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> the same."""
        return self.norm(self.conv2(self.activation(self.conv1(x)))) + x  # type: ignore[no-any-return]


class Gather(nn.Module):
    """Queries, keys and values from a neighbourhood: a convolution a channel, then a mixture within each head."""

    def __init__(self, channels: int, heads: int, kernel: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.proj_in = nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide, bias=False)
        self.proj_out = nn.Conv2d(wide, wide, 1, groups=3 * heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3c, h, w] -> the same."""
        return self.proj_out(self.proj_in(x))  # type: ignore[no-any-return]


class LinearAttention(nn.Module):
    """Attention with weights relu(k) relu(q), which cost as many steps as there are pixels: v k^T is summed first.

    Cai et al. 2023, "EfficientViT", section 3.1, with a group of heads more for each scale.
    """

    def __init__(self, channels: int, head_width: int, scales: tuple[int, ...]) -> None:
        super().__init__()
        heads = channels // head_width
        inner, self.head_width = heads * head_width, head_width
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, inner, bias=False) for _ in range(3))
        self.to_qkv_multiscale = nn.ModuleList(Gather(inner, heads, kernel) for kernel in scales)
        self.to_out = nn.Linear(inner * (1 + len(scales)), channels, bias=False)
        self.norm_out = Norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> the same."""
        n, _, height, width = x.shape
        rows = x.movedim(1, -1)
        qkv = torch.cat([self.to_q(rows), self.to_k(rows), self.to_v(rows)], dim=-1).movedim(-1, 1)
        qkv = torch.cat([qkv, *(gather(qkv) for gather in self.to_qkv_multiscale)], dim=1).float()
        # heads are cut from all channels in turn, as the published weights are used: q of one may come from several
        q, k, v = qkv.reshape(n, -1, 3 * self.head_width, height * width).chunk(3, dim=2)  # [n, heads, d, T] each
        q, k, v = q.relu(), k.relu(), F.pad(v, (0, 0, 0, 1), value=1.0)  # a row of ones sums the weights
        y = v @ k.transpose(-1, -2) @ q  # [n, heads, d + 1, T]
        y = (y[:, :, :-1] / (y[:, :, -1:] + 1e-15)).reshape(n, -1, height, width).to(x.dtype)
        return self.norm_out(self.to_out(y.movedim(1, -1)).movedim(-1, 1)) + x  # type: ignore[no-any-return]


class GatedConvolutions(nn.Module):
    """1x1 up, 3x3 a channel, a gate, 1x1 down, beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_inverted = nn.Conv2d(channels, 8 * channels, 1)
        self.conv_depth = nn.Conv2d(8 * channels, 8 * channels, 3, padding=1, groups=8 * channels)
        self.conv_point = nn.Conv2d(4 * channels, channels, 1, bias=False)
        self.norm = Norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> the same."""
        y, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
        return self.norm(self.conv_point(y * F.silu(gate))) + x  # type: ignore[no-any-return]


class Attending(nn.Module):
    """Linear attention, then gated convolutions."""

    def __init__(self, channels: int, head_width: int, scales: tuple[int, ...]) -> None:
        super().__init__()
        self.attn = LinearAttention(channels, head_width, scales)
        self.conv_out = GatedConvolutions(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> the same."""
        return self.conv_out(self.attn(x))  # type: ignore[no-any-return]


class Halve(nn.Module):
    """A convolution to half the sides, beside 2x2 pixels that are folded into channels and averaged in groups."""

    def __init__(self, inputs: int, outputs: int, unshuffle: bool, shortcut: bool = True) -> None:
        super().__init__()
        self.unshuffle, self.group = unshuffle, 4 * inputs // outputs if shortcut else 0
        inner, stride = (outputs // 4, 1) if unshuffle else (outputs, 2)
        self.conv = nn.Conv2d(inputs, inner, 3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h/2, w/2]."""
        y: Tensor = self.conv(x)
        y = F.pixel_unshuffle(y, 2) if self.unshuffle else y
        return y + F.pixel_unshuffle(x, 2).unflatten(1, (-1, self.group)).mean(2) if self.group else y


class Double(nn.Module):
    """A convolution to double sides, beside channels that are repeated and unfolded into 2x2 pixels."""

    def __init__(self, inputs: int, outputs: int, shuffle: bool, shortcut: bool = True) -> None:
        super().__init__()
        self.shuffle, self.repeats = shuffle, 4 * outputs // inputs if shortcut else 0
        self.conv = nn.Conv2d(inputs, 4 * outputs if shuffle else outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, 2h, 2w]."""
        y = F.pixel_shuffle(self.conv(x), 2) if self.shuffle else self.conv(F.interpolate(x, scale_factor=2.0))
        return y + F.pixel_shuffle(x.repeat_interleave(self.repeats, 1), 2) if self.repeats else y


def _block(config: Config, level: int, batch_norm: bool) -> nn.Module:
    width = config.widths[level]
    if config.attention[level]:
        return Attending(width, config.head_width, config.scales)
    return Convolutions(width, batch_norm)


class Encoder(nn.Module):
    """Image -> latent."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        whole = config.encoder[0] > 0
        self.conv_in: nn.Module = (
            nn.Conv2d(channels, widths[0], 3, padding=1)
            if whole
            else Halve(channels, widths[1], config.unshuffle, shortcut=False)
        )
        self.down_blocks = nn.ModuleList()
        for i, blocks in enumerate(config.encoder):
            way = [Halve(widths[i], widths[i + 1], config.unshuffle)] if i < last and blocks else []
            self.down_blocks.append(nn.Sequential(*(_block(config, i, False) for _ in range(blocks)), *way))
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)
        self.group = widths[-1] // config.latent_channels

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, H, W] -> [n, C, h, w]."""
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(x) + x.unflatten(1, (-1, self.group)).mean(2)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latent -> image."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.repeats = widths[-1] // config.latent_channels
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.up_blocks = nn.ModuleList()  # the image's resolution first
        for i, blocks in enumerate(config.decoder):
            way = [Double(widths[i + 1], widths[i], config.shuffle)] if i < last and blocks else []
            inner = (_block(config, i, config.batch_norm[i]) for _ in range(blocks))
            self.up_blocks.append(nn.Sequential(*way, *inner))
        width = widths[0] if config.decoder[0] else widths[1]
        self.norm_out = Norm(width)
        self.conv_out: nn.Module = (
            nn.Conv2d(width, channels, 3, padding=1)
            if config.decoder[0]
            else Double(width, channels, config.shuffle, shortcut=False)
        )

    def forward(self, z: Tensor) -> Tensor:
        """[n, C, h, w] -> [n, channels, H, W]."""
        x = self.conv_in(z) + z.repeat_interleave(self.repeats, 1)
        for level in reversed(self.up_blocks):
            x = level(x)
        return self.conv_out(F.relu(self.norm_out(x)))  # type: ignore[no-any-return]


class Model(nn.Module):
    """Images in [-1, 1] <-> raw latents (never scaled here)."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.config, self.channels, self.latent_channels = config, channels, config.latent_channels
        self.factor = 2 ** (len(config.widths) - 1)  # image side over latent side
        self.encoder, self.decoder = Encoder(config, channels), Decoder(config, channels)

    @property
    def last_layer(self) -> nn.Module:
        """Whose weights' gradients an adversarial loss is balanced by."""
        out = self.decoder.conv_out
        return out.conv if isinstance(out, Double) else out

    def encode(self, x: Tensor) -> Tensor:
        """x [n, channels, H, W] in [-1, 1] -> moments float32 [n, 2C, h, w] without variance."""
        return posterior.certain(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """z [n, C, h, w] -> images float32 [n, channels, H, W], about [-1, 1], not clipped."""
        return self.decoder(z).float()  # type: ignore[no-any-return]

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, channels, H, W] -> reconstruction, and moments; nothing is drawn."""
        moments = self.encode(x)
        return self.decode(posterior.split(moments)[0]), moments
