"""Networks that say what is to be seen on an image: a value by column, or which of many captions belongs to it.

They judge samples, so nothing of a denoiser or an autoencoder is in them. How they are trained and kept is
`pipeline/evaluation/judges.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.conditioning.text import Bytes

LARGEST = 64  # pixels; larger images are made smaller first
TEMPERATURE = 0.07  # at the start, and at least a hundredth: Radford et al. 2021


class Places(nn.Module):
    """Convolutions over small neighbourhoods: a quarter of the image's side, each place seeing 17 pixels around it, and
    where in the image it is."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.size, self.width = min(size, LARGEST), 64
        layers: list[nn.Module] = []
        for before, after, kernel, stride in ((channels + 2, 32, 5, 2), (32, 64, 3, 2), (64, self.width, 3, 1)):
            layers += convolution(before, after, kernel, stride)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [n, C, H, W] in [-1, 1] -> [n, width, h, w]."""
        if x.shape[-2:] != (self.size, self.size):
            x = functional.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        across = torch.linspace(-1, 1, self.size, device=x.device).expand(len(x), 1, self.size, self.size)
        found: Tensor = self.layers(torch.cat([x, across, across.transpose(2, 3)], 1))
        return found


def convolution(before: int, after: int, kernel: int, stride: int) -> list[nn.Module]:
    layer = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [layer, nn.BatchNorm2d(after), nn.ReLU()]


class Judge(nn.Module):
    """Evidence for each value of each column, by place; of an image the log of its sum (a smooth maximum) over places.

    columns: outputs of each, by name; numbers: those of them whose output is a mean over places instead.
    """

    def __init__(self, channels: int, size: int, columns: Mapping[str, int], numbers: Collection[str] = ()) -> None:
        super().__init__()
        self.columns, self.numbers = dict(sorted(columns.items())), tuple(numbers)  # a file keeps no order
        self.places = Places(channels, size)
        self.dropout = nn.Dropout2d(0.1)
        self.heads = nn.Conv2d(self.places.width, sum(columns.values()), 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """float32 [n, C, H, W] in [-1, 1] -> of each column [n, outputs]."""
        evidence = self.heads(self.dropout(self.places(images))).flatten(2)  # [n, outputs of all, places]
        parts = torch.split(evidence, list(self.columns.values()), dim=1)
        return {
            name: part.mean(2) if name in self.numbers else torch.logsumexp(part, 2) - math.log(part.shape[2])
            for name, part in zip(self.columns, parts, strict=True)
        }


class TwoTowers(nn.Module):
    """Images and captions in one space (CLIP, Radford et al. 2021): a caption is near the images it belongs to.

    tokens: symbols of a caption, at most, which are read by a small transformer; embedded: width of vectors of a frozen
    encoder that stand for captions instead. Their length is no matter: encoders differ in it by far.
    """

    def __init__(self, channels: int, size: int, tokens: int, embedded: int | None = None, width: int = 128) -> None:
        super().__init__()
        self.places = Places(channels, size)
        self.whole = nn.Sequential(
            *convolution(self.places.width, 128, 3, 2), *convolution(128, width, 3, 2), nn.AdaptiveAvgPool2d(2)
        )
        self.to_image = nn.Linear(4 * width, width)
        if embedded:
            self.text: nn.Module = nn.Sequential(
                nn.LayerNorm(embedded, elementwise_affine=False), nn.Linear(embedded, width)
            )
        else:
            self.text = Bytes(tokens, width, width=64, depth=2, heads=4)
            self.text.to_tokens = nn.Identity()  # type: ignore[assignment]  # nobody attends to them
            nn.init.normal_(self.text.to_vector.weight, std=64**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))

    def images(self, images: Tensor) -> Tensor:
        """float32 [n, C, H, W] in [-1, 1] -> [n, width] of length 1."""
        found = self.whole(self.places(images)).flatten(1)
        return functional.normalize(self.to_image(found), dim=1)

    def captions(self, captions: Tensor) -> Tensor:
        """Symbols int64 [n, S], or vectors float32 [n, embedded] -> [n, width] of length 1."""
        if isinstance(self.text, Bytes):
            return functional.normalize(self.text({"caption": captions}, captions).vector, dim=1)
        return functional.normalize(self.text(captions), dim=1)

    def scores(self, images: Tensor, captions: Tensor) -> Tensor:
        """What both sides gave, [n, width] and [m, width] -> [n, m], the log of a caption's share, but for a sum."""
        return self.log_scale.clamp(max=math.log(100)).exp() * images @ captions.T


def contrastive(scores: Tensor, same: Tensor) -> Tensor:
    """The symmetric contrastive loss of pairs i, i: scores [n, n]; same bool [n, n], which captions are equal: those
    are right as well, each with its share (Radford et al. 2021, figure 3, has no equal ones)."""
    share = same.float() / same.sum(1, keepdim=True)
    return (functional.cross_entropy(scores, share) + functional.cross_entropy(scores.T, share)) / 2
