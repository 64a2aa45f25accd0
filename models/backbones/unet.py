"""UNet of ADM: residual blocks and attention on maps that are halved and doubled, with skips between equal resolutions.

Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3; with the plain options it is the
UNet of DDPM (Ho et al. 2020). With `tokens: cross` its pixels attend to a caption (Rombach et al. 2022, "High-
Resolution Image Synthesis with Latent Diffusion Models", 3.3). Layers and their parameters bear the names of diffusers'
`UNet2DModel`. Works on maps of any size that can be halved as often. What the output means is not known here: see
diffusion/objectives.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.conditioning import Embedded
from models.layers import Double, Halve, SpatialAttention, SpatialCrossAttention, TimeEmbedding, run
from models.patches import Size, sides_of, size_of
from models.registry import later


@dataclass(frozen=True)
class Config:
    """Shape of a UNet. Defaults are those of ADM's larger models, at a size for latents."""

    width: int = 128  # channels at full resolution, before the multiplier; a multiple of groups
    multipliers: tuple[int, ...] = (1, 2, 3, 4)  # channels at each resolution, over width
    blocks: int = 2  # residual blocks at each resolution on the way down (one more on the way up)
    attention: tuple[bool, ...] = (False, True, True, True)  # at each resolution: attention after each residual block
    middle_attention: bool = True  # attention at the lowest resolution, between the two halves
    middle_norm: bool = True  # a group norm before that attention
    head_width: int | None = 64  # channels of an attention head; null: one head
    groups: int = 32  # groups of the group norms
    scale_shift: bool = True  # time and condition scale and shift the second norm of a block; false: they are added
    resample: str = "resnet"  # how a map is halved and doubled: by a "conv" or in a residual block ("resnet")
    padding: int = 1  # of the halving "conv": on all sides (1), or right and below only (0), as DDPM has it
    norm_eps: float = 1e-5  # epsilon of the norms
    frequency_shift: int = 0  # 1: the last frequency of the time is 1/10000, 0: the one after it would be
    tokens: str = later("none")  # how a caption's tokens come in: "cross", attention to them behind each self-attention

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers: expected one number of at least 1 a resolution, got {self.multipliers}")
        if len(self.attention) != len(self.multipliers):
            raise ValueError(f"attention: expected {len(self.multipliers)} booleans, one a multiplier")
        if self.resample not in ("conv", "resnet"):
            raise ValueError(f"resample: expected 'conv' or 'resnet', got {self.resample!r}")
        if self.padding not in (0, 1):
            raise ValueError(f"padding: expected 0 or 1, got {self.padding}")
        for width in self.widths:
            if width % self.groups:
                raise ValueError(f"groups: expected a divisor of each width {self.widths}, got {self.groups}")
        attended = [w for w, there in zip(self.widths, self.attention, strict=True) if there]
        attended += [self.widths[-1]] if self.middle_attention else []
        if self.tokens not in ("none", "cross"):
            raise ValueError(f"tokens: expected 'none' or 'cross', got {self.tokens!r}")
        if self.tokens == "cross" and not attended:
            raise ValueError("tokens: attention to them is behind self-attention; give some attention")
        if self.head_width is not None and any(w % self.head_width for w in attended):
            raise ValueError(f"head_width: expected a divisor of the widths {attended}, got {self.head_width}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)


def _row(width: int, multipliers: tuple[int, ...], attention: tuple[int, ...], **rest: Any) -> dict[str, Any]:
    return {"width": width, "multipliers": multipliers, "attention": tuple(bool(a) for a in attention), **rest}


# Parameters and forward FLOPs are in the table that `ldm models` prints. "adm-64" and "adm-256" are the paper's models
# of ImageNet at these sizes; "ddpm-32" is that of CIFAR-10.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": _row(32, (1, 2), (0, 1), blocks=1, head_width=32, groups=8),
    "small": _row(64, (1, 2, 2), (0, 1, 1), blocks=1, head_width=32, groups=16),
    "base": _row(128, (1, 2, 3, 4), (0, 1, 1, 1)),
    "large": _row(256, (1, 2, 3, 4), (0, 1, 1, 1)),
    "ddpm-32": _row(
        128,
        (1, 2, 2, 2),
        (0, 1, 0, 0),
        head_width=None,
        scale_shift=False,
        resample="conv",
        padding=0,
        norm_eps=1e-6,
        frequency_shift=1,
    ),
    "adm-64": _row(192, (1, 2, 3, 4), (0, 1, 1, 1), blocks=3),
    "adm-256": _row(256, (1, 1, 2, 2, 4, 4), (0, 0, 0, 1, 1, 1)),
}


class Residual(nn.Module):
    """Norm, SiLU, convolution, twice, beside a shortcut; the embedding of time and condition joins between them.

    `resize` halves ("down", a mean of 2 x 2) or doubles ("up", nearest neighbour) both branches before they begin.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, config: Config, resize: str | None = None) -> None:
        super().__init__()
        self.scale_shift, self.resize, self.changes = config.scale_shift, resize, inputs != outputs
        self.norm1 = nn.GroupNorm(config.groups, inputs, eps=config.norm_eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding, 2 * outputs if config.scale_shift else outputs)
        self.norm2 = nn.GroupNorm(config.groups, outputs, eps=config.norm_eps)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if self.changes:
            self.conv_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x [n, inputs, h, w], c [n, E] (after SiLU) -> [n, outputs, h', w'], h' = h, h/2 (down) or 2h (up)."""
        y = F.silu(self.norm1(x))
        if self.resize == "down":
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        if self.resize == "up":
            x, y = (F.interpolate(m, scale_factor=2.0, mode="nearest") for m in (x, y))
        y = self.conv1(y)
        e = self.time_emb_proj(c)[:, :, None, None]  # [n, outputs or 2 outputs, 1, 1]
        if self.scale_shift:
            scale, shift = e.float().chunk(2, dim=1)
            y = torch.addcmul(shift, self.norm2(y).float(), 1 + scale)
        else:
            y = self.norm2(y + e)
        y = self.conv2(F.silu(y))
        return (self.conv_shortcut(x) if self.changes else x) + y  # type: ignore[no-any-return]


class Level(nn.Module):
    """Residual blocks at one resolution, each with attention behind it or not, then the way to the next resolution.

    On the way up every block takes one of the maps that the way down left, at the end of its channels.
    """

    def __init__(
        self, inputs: list[int], outputs: int, attention: bool, towards: str | None, embedding: int, config: Config
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(width, outputs, embedding, config) for width in inputs)
        if attention:
            self.attentions = nn.ModuleList(
                SpatialAttention(outputs, config.groups, config.head_width, config.norm_eps) for _ in inputs
            )
        self.attention, self.towards = attention, towards
        self.cross = attention and config.tokens == "cross"
        if self.cross:
            self.cross_attentions = nn.ModuleList(
                SpatialCrossAttention(outputs, config.head_width, embedding) for _ in inputs
            )
        self.embedded = config.resample == "resnet"  # whether the way to the next resolution takes the embedding
        if towards == "down":
            down = Halve(outputs, config.padding) if not self.embedded else None
            self.downsamplers = nn.ModuleList([down or Residual(outputs, outputs, embedding, config, "down")])
        if towards == "up":
            up = Double(outputs) if not self.embedded else None
            self.upsamplers = nn.ModuleList([up or Residual(outputs, outputs, embedding, config, "up")])
        self.activation_checkpointing = False

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        skips: tuple[Tensor, ...] = (),
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        looks: list[Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """x [n, inputs, h, w], c [n, E], skips (on the way up, the next one last); of the caption tokens [n, S, E] and
        mask bool [n, S] -> all maps made, in order. looks: as of `Model`."""
        made: list[Tensor] = []
        recompute = self.activation_checkpointing and self.training
        for i, block in enumerate(self.resnets):
            joined = torch.cat([x, skips[-1 - i]], dim=1) if skips else x
            x = run(block, joined, c, recompute=recompute)
            if self.attention:
                x = run(self.attentions[i], x, recompute=recompute)
            if self.cross:
                x = run(self.cross_attentions[i], x, tokens, mask, looks, recompute=recompute)
            made.append(x)
        if self.towards is not None:
            resample = (self.downsamplers if self.towards == "down" else self.upsamplers)[0]
            made.append(run(resample, x, *((c,) if self.embedded else ()), recompute=recompute))
        return tuple(made)


class Middle(nn.Module):
    """Residual, attention, residual at the lowest resolution."""

    def __init__(self, width: int, embedding: int, config: Config) -> None:
        super().__init__()
        if config.middle_attention:
            self.attentions = nn.ModuleList(
                [SpatialAttention(width, config.groups, config.head_width, config.norm_eps, config.middle_norm)]
            )
        self.attention = config.middle_attention
        self.cross = config.middle_attention and config.tokens == "cross"
        if self.cross:
            self.cross_attentions = nn.ModuleList([SpatialCrossAttention(width, config.head_width, embedding)])
        self.resnets = nn.ModuleList(Residual(width, width, embedding, config) for _ in range(2))
        self.activation_checkpointing = False

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        looks: list[Tensor] | None = None,
    ) -> Tensor:
        """[n, C, h, w], c [n, E], tokens [n, S, E] and mask bool [n, S] of the caption -> [n, C, h, w]."""
        recompute = self.activation_checkpointing and self.training
        x = run(self.resnets[0], x, c, recompute=recompute)
        if self.attention:
            x = run(self.attentions[0], x, recompute=recompute)
        if self.cross:
            x = run(self.cross_attentions[0], x, tokens, mask, looks, recompute=recompute)
        return run(self.resnets[1], x, c, recompute=recompute)  # type: ignore[no-any-return]


class Model(nn.Module):
    """(x, t, condition) -> prediction. `condition_width` is the width of the vector that it expects.

    beside: channels that come with x, and do not come out.
    """

    def __init__(self, config: Config, channels: int, size: Size, beside: int = 0) -> None:
        super().__init__()
        self.config = config
        widths, last = config.widths, len(config.widths) - 1
        sides = sides_of(size)
        if len(sides) != 2:
            raise ValueError(f"kind: unet takes latents of two sides, got {list(sides)}; give a dit")
        if any(side % 2**last for side in sides):
            raise ValueError(
                f"multipliers: {last} halvings, expected a latent size that {2**last} divides, got {size_of(sides)}"
            )
        embedding = self.condition_width = 4 * widths[0]
        self.attends = config.tokens != "none"  # to a caption's tokens, which then are part of every condition
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(embedding, widths[0], config.frequency_shift)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips = [widths[0]]  # channels of the maps that are kept for the way up
        for i, width in enumerate(widths):
            inputs = [skips[-1]] + [width] * (config.blocks - 1)
            towards = "down" if i < last else None
            self.down_blocks.append(Level(inputs, width, config.attention[i], towards, embedding, config))
            skips += [width] * (config.blocks + (i < last))
        self.mid_block = Middle(widths[-1], embedding, config)
        before = widths[-1]
        for i in reversed(range(len(widths))):
            inputs = [(before if j == 0 else widths[i]) + skips.pop() for j in range(config.blocks + 1)]
            towards = "up" if i > 0 else None
            self.up_blocks.append(Level(inputs, widths[i], config.attention[i], towards, embedding, config))
            before = widths[i]
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)
        self.taken = config.blocks + 1  # maps that a level takes on the way up
        for name, layer in self.named_modules():  # a new block is its shortcut, a new model gives zero
            if name.endswith(("conv2", "to_out.0")) or name == "conv_out":
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        # The first layer's weights for what is concatenated to x, kept apart: they begin as zero, so that a network
        # which did not know these channels stays what it was, name by name.
        self.conv_in_beside = nn.Conv2d(beside, widths[0], 3, padding=1, bias=False) if beside else None
        if self.conv_in_beside is not None:
            nn.init.zeros_(self.conv_in_beside.weight)

    def forward(self, x: Tensor, t: Tensor, condition: Embedded, looks: list[Tensor] | None = None) -> Tensor:
        """x [n, C, h, w], t [n] in [0, 1], condition.vector [n, E], tokens [n, S, E] if it attends, channels
        [n, beside, h, w] if there are any -> float32 [n, C, h, w]. looks: gets appended, of each attention to the
        caption, how places look at its tokens: float32 [n, S, h', w'], 1 over S."""
        c = F.silu(self.time_embedding(t).float() + condition.vector.float())  # [n, E]
        caption = (condition.tokens, condition.mask, looks) if self.attends else ()
        h = self.conv_in(x)
        if self.conv_in_beside is not None and condition.channels is not None:
            h = h + self.conv_in_beside(condition.channels)
        skips = [h]
        for level in self.down_blocks:
            made = level(h, c, (), *caption)
            h = made[-1]
            skips += made
        h = self.mid_block(h, c, *caption)
        for level in self.up_blocks:
            h = level(h, c, tuple(skips[-self.taken :]), *caption)[-1]
            del skips[-self.taken :]
        return self.conv_out(F.silu(self.conv_norm_out(h))).float()  # type: ignore[no-any-return]
