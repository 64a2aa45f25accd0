"""KL autoencoder of clips: that of images (`kl.py`) with convolutions that reach back in time. Nothing reaches forward.

Causal as in MAGVIT-v2 (Yu et al. 2023, "Language Model Beats Diffusion", section 3.3): the first frame is encoded and
decoded by itself, each further latent stands for `time` frames, so that 1 + m frames become 1 + m / time latents. The
first convolution of each residual block sees `span` frames, its own last; norms, attention and all other layers see
each frame by itself. With the weights of a `kl` (`inflated`) a clip of one frame is what that makes of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import posterior
from models.autoencoders import kl
from models.layers import run

TIMES = (1, 2, 4)


@dataclass(frozen=True)
class Config(kl.Config):
    """Shape of an autoencoder of clips; each side of a frame shrinks as with `kl`."""

    time: int = 2  # frames that a latent stands for, behind the first: 1, 2 or 4
    span: int = 3  # frames that a convolution over time sees: its own and those before

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time not in TIMES:
            raise ValueError(f"time: expected one of {', '.join(map(str, TIMES))}, got {self.time}")
        if self.span < 1:
            raise ValueError(f"span: expected at least 1, got {self.span}")
        if self.halvings > len(self.multipliers):
            raise ValueError(f"time: {self.time} needs {self.halvings} resolutions or more (`multipliers`)")

    @property
    def halvings(self) -> int:
        """How often the frames become half as many."""
        return int(math.log2(self.time))


_TINY: dict[str, Any] = {"blocks": 1, "attention": False, "groups": 8}
PRESETS: dict[str, dict[str, Any]] = {  # of RGB; "tiny" for small clips on a CPU, "base" for a GPU
    "tiny-f2t2": {"width": 32, "multipliers": (1, 2), "time": 2, **_TINY},
    "tiny-f4t1": {"width": 32, "multipliers": (1, 2, 2), "time": 1, **_TINY},
    "tiny-f4t2": {"width": 32, "multipliers": (1, 2, 2), "time": 2, **_TINY},
    "tiny-f4t4": {"width": 32, "multipliers": (1, 2, 2), "time": 4, **_TINY},
    "base-f8t4": {"width": 128, "multipliers": (1, 2, 4, 4), "time": 4},
}


def _led(x: Tensor, span: int) -> Tensor:
    """[n, c, T, h, w] with the first frame span - 1 times more before it: a clip that stands still has no beginning."""
    return x if span == 1 else torch.cat([x[:, :, :1].expand(-1, -1, span - 1, -1, -1), x], dim=2)


def _clip(x: Tensor, frames: int) -> Tensor:
    """Frames as a batch of maps [n T, c, h, w] -> [n, c, T, h, w]."""
    return x.unflatten(0, (-1, frames)).transpose(1, 2)  # type: ignore[no-any-return]


def _maps(x: Tensor) -> Tensor:
    """The inverse of `_clip`."""
    return x.transpose(1, 2).flatten(0, 1)


class CausalConv(nn.Conv3d):
    """3x3 over a frame and the `span` - 1 before it."""

    def __init__(self, inputs: int, outputs: int, span: int) -> None:
        super().__init__(inputs, outputs, (span, 3, 3), padding=(0, 1, 1))

    def over(self, x: Tensor, frames: int) -> Tensor:
        """[n T, inputs, h, w] -> [n T, outputs, h, w]."""
        return _maps(self(_led(_clip(x, frames), self.kernel_size[0])))


class AlongTime(nn.Conv3d):
    """Half as many frames, or twice as many, less one: 1 + 2m -> 1 + m, or back. Begins as taking every second frame,
    or each twice; the first stays alone."""

    def __init__(self, channels: int, span: int, halve: bool) -> None:
        super().__init__(channels, channels, (span, 1, 1), stride=(2 if halve else 1, 1, 1))
        self.halve = halve
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.weight)
        with torch.no_grad():
            self.weight[:, :, -1, 0, 0] = torch.eye(channels)

    def over(self, x: Tensor, frames: int) -> tuple[Tensor, int]:
        """[n T, c, h, w] -> [n T', c, h, w], and T'."""
        clip = _clip(x, frames)
        if not self.halve:
            clip = clip.repeat_interleave(2, dim=2)[:, :, 1:]
        made = self(_led(clip, self.kernel_size[0]))
        return _maps(made), made.shape[2]


class Residual(kl.Residual):
    """That of images, whose first convolution sees frames before as well."""

    def __init__(self, inputs: int, outputs: int, groups: int, span: int) -> None:
        super().__init__(inputs, outputs, groups)
        self.conv1: Any = CausalConv(inputs, outputs, span)

    def over(self, x: Tensor, frames: int) -> Tensor:
        """[n T, inputs, h, w] -> [n T, outputs, h, w]."""
        y = self.conv1.over(F.silu(self.norm1(x)), frames)
        y = self.conv2(F.silu(self.norm2(y)))
        return (self.conv_shortcut(x) if self.changes else x) + y  # type: ignore[no-any-return]

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        """As `over`."""
        return self.over(x, frames)


def _over_time(part: kl.Encoder | kl.Decoder, config: Config, towards: str) -> None:
    """Give an encoder or decoder of images residual blocks over time, and the way to fewer frames or more."""
    last = len(config.multipliers) - 1
    levels: Any = part.down_blocks if isinstance(part, kl.Encoder) else part.up_blocks
    for place, level in enumerate(levels):
        for i, block in enumerate(level.resnets):
            shape = block.conv1.in_channels, block.conv1.out_channels
            level.resnets[i] = Residual(*shape, config.groups, config.span)
        # at the lowest resolutions, of the encoder the last ones, behind the blocks; of the decoder the first, before
        depth = last - place if towards == "down" else place
        if depth < config.halvings:
            channels = shape[1] if towards == "down" else level.resnets[0].conv1.in_channels
            level.time = AlongTime(channels, config.span, towards == "down")
    middle: Any = part.mid_block
    for i, block in enumerate(middle.resnets):
        middle.resnets[i] = Residual(block.conv1.in_channels, block.conv1.out_channels, config.groups, config.span)


def _level(level: Any, x: Tensor, frames: int) -> tuple[Tensor, int]:
    """A level of encoder or decoder on [n T, c, h, w], and how many frames come out."""
    recompute = level.activation_checkpointing and level.training
    time = getattr(level, "time", None)
    if time is not None and not time.halve:
        x, frames = time.over(x, frames)
    for block in level.resnets:
        x = run(block, x, frames, recompute=recompute)
    if time is not None and time.halve:
        x, frames = time.over(x, frames)
    if level.towards is not None:
        x = (level.downsamplers if level.towards == "down" else level.upsamplers)[0](x)
    return x, frames


def _middle(middle: Any, x: Tensor, frames: int) -> Tensor:
    recompute = middle.activation_checkpointing and middle.training
    first, last = middle.resnets
    x = run(first, x, frames, recompute=recompute)
    for attention in middle.attentions:
        x = run(attention, x, recompute=recompute)
    return run(last, x, frames, recompute=recompute)  # type: ignore[no-any-return]


class Model(nn.Module):
    """Clips [n, channels, T, H, W] in [-1, 1] <-> raw latents [n, C, t, h, w]."""

    of_images, of_clips = False, True
    usual_frames = 9  # of a clip where nobody says how many (`models.costs`)

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.config, self.channels, self.latent_channels = config, channels, config.latent_channels
        self.side = 2 ** (len(config.multipliers) - 1)  # pixels a side of a latent
        latent, outputs = config.latent_channels, 2 * config.latent_channels
        self.encoder, self.decoder = kl.Encoder(config, channels, outputs), kl.Decoder(config, channels)
        _over_time(self.encoder, config, "down")
        _over_time(self.decoder, config, "up")
        self.quant_conv = nn.Conv2d(outputs, outputs, 1) if config.quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.quant_conv else None

    def latent_sides(self, sides: tuple[int, ...]) -> tuple[int, int, int]:
        """(t, h, w) of clips (T, H, W). ValueError where these do not fit."""
        time = self.config.time
        if len(sides) != 3:
            raise ValueError(f"sides: expected frames, height and width of a clip, got {list(sides)}")
        frames, height, width = sides
        if (frames - 1) % time:
            near = 1 + (frames - 1) // time * time
            raise ValueError(f"time: {time} takes 1 + {time} m frames, such as {near} or {near + time}, not {frames}")
        if height % self.side or width % self.side:
            raise ValueError(f"multipliers: sides of {height} x {width} pixels are no multiples of {self.side}")
        return 1 + (frames - 1) // time, height // self.side, width // self.side

    def data_sides(self, sides: tuple[int, ...]) -> tuple[int, int, int]:
        """(T, H, W) of latents (t, h, w)."""
        frames, height, width = sides
        return 1 + (frames - 1) * self.config.time, height * self.side, width * self.side

    def encode(self, x: Tensor) -> Tensor:
        """x [n, channels, T, H, W] in [-1, 1] -> moments float32 [n, 2C, t, h, w]: mean, clamped log-variance."""
        self.latent_sides(tuple(x.shape[2:]))
        encoder, frames = self.encoder, x.shape[2]
        h = encoder.conv_in(_maps(x))
        for level in encoder.down_blocks:
            h, frames = _level(level, h, frames)
        h = encoder.conv_out(F.silu(encoder.conv_norm_out(_middle(encoder.mid_block, h, frames))))
        h = h if self.quant_conv is None else self.quant_conv(h)
        return posterior.clamp(_clip(h, frames))

    def decode(self, z: Tensor) -> Tensor:
        """z [n, C, t, h, w] -> clips float32 [n, channels, T, H, W], about [-1, 1], not clipped."""
        decoder, frames = self.decoder, z.shape[2]
        h = _maps(z)
        h = decoder.conv_in(h if self.post_quant_conv is None else self.post_quant_conv(h))
        h = _middle(decoder.mid_block, h, frames)
        for level in decoder.up_blocks:
            h, frames = _level(level, h, frames)
        return _clip(decoder.conv_out(F.silu(decoder.conv_norm_out(h))), frames).float()

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, channels, T, H, W], noise [n, C, t, h, w] ~ N(0, I) -> reconstruction of a posterior draw, moments."""
        moments = self.encode(x)
        return self.decode(posterior.sample(moments, noise)), moments


def inflated(model: Model, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole state of `model` with the weights of a `kl` of the same form: kernels of 3x3 become the last of
    [span, 3, 3], those before it zero (Carreira and Zisserman 2017 spread them evenly; a causal one puts them last,
    Yu et al. 2023). What has no like there stays. ValueError, naming it, for what does not fit."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in weights.items():
        mine = state.get(name)
        if mine is None or mine.shape not in (value.shape, (*value.shape[:2], model.config.span, *value.shape[2:])):
            raise ValueError(f"another autoencoder: {name} is {list(value.shape)} there, and has no place here")
        if mine.shape == value.shape:
            state[name] = value.clone()
        else:
            mine.zero_()
            mine[:, :, -1] = value
    return state
