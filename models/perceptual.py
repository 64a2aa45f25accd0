"""Perceptual distance: how far apart two batches of images are in the features of a fixed network.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (LPIPS): features of several
depths, each pixel's vector normed to length 1, squared differences weighted by channel ("heads"), a mean over pixels, a
sum over depths. The same with other features and equal weights is a weaker stand-in. Which weights there are and where
they come from is pipeline/tasks/perceptual.py's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-10  # of the norm of a pixel's features, as in LPIPS
# Zhang et al.'s scaling layer: images in [-1, 1] -> what ImageNet networks were trained on
IMAGENET_SHIFT, IMAGENET_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # a depth is read after each row


class FeatureDistance(nn.Module):
    """Distance by image in the features of `stages`, each a module whose output is read and goes into the next.

    heads: a weight for each channel of each stage, [c], not negative; None: 1 / c, a mean over channels.
    shift, scale: by channel of the images, applied first; their number is the channels that the network wants (gray
    images are repeated). Nothing in it is trained; it is always in evaluation mode.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        heads: Sequence[Tensor] | None = None,
        shift: Sequence[float] = (0.0,),
        scale: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.heads = [f"head{i}" for i in range(len(stages))] if heads is not None else None
        for i, head in enumerate(heads or ()):
            self.register_buffer(f"head{i}", head.detach().float().view(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(1, -1, 1, 1))
        self.register_buffer("scale", torch.tensor(scale).view(1, -1, 1, 1))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FeatureDistance:
        """Stays in evaluation mode."""
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """[n, c, H, W] in [-1, 1] -> float32 [n, c_i, h_i, w_i] of each stage, each pixel's vector of length 1."""
        shift: Tensor = self.get_buffer("shift")
        x = images.expand(-1, shift.shape[1], -1, -1) if shift.shape[1] > images.shape[1] == 1 else images
        x = (x - shift) / self.get_buffer("scale")
        found = []
        for stage in self.stages:
            x = stage(x)
            y = x.float()
            # EPSILON inside the root as well: its gradient at a pixel without any feature is 0, not 0/0
            found.append(y / ((y.square().sum(1, keepdim=True) + EPSILON**2).sqrt() + EPSILON))
        return found

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Distance [n], float32; both [n, c, H, W] in [-1, 1]. The gradient goes to `others` only."""
        with torch.no_grad():
            wanted = self.features(images)
        total = torch.zeros(len(images), device=images.device)
        for i, (a, b) in enumerate(zip(wanted, self.features(others), strict=True)):
            square = (a - b).square()  # [n, c_i, h_i, w_i]
            weighted = square * self.get_buffer(self.heads[i]) if self.heads else square / square.shape[1]
            total = total + weighted.sum(1).mean((1, 2))
        return total


def lpips(network: str, state: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> FeatureDistance:
    """LPIPS 0.1 of `network` ("vgg": VGG16, "alex": AlexNet).

    state: weights in torchvision's naming (`features.0.weight`, ...; the classifier's are not needed). heads: linear
    heads as published (`lin0.model.1.weight` [1, c, 1, 1], ...). ValueError where a name or a shape is not as expected.
    """
    stages = {"vgg": _vgg16, "alex": _alexnet}[network]()
    whole = nn.Sequential()  # torchvision numbers convolutions, activations and pools through all stages
    for stage in stages:
        for module in stage:
            whole.append(module)
    wanted = whole.state_dict()
    missing = sorted(f"features.{name}" for name in wanted if f"features.{name}" not in state)
    if missing:
        raise ValueError(f"{network} weights in torchvision's naming: {missing[0]} is not there")
    for name, value in wanted.items():
        given = state[f"features.{name}"]
        if given.shape != value.shape:
            raise ValueError(f"features.{name}: expected {tuple(value.shape)}, got {tuple(given.shape)}")
    whole.load_state_dict({name: state[f"features.{name}"].float() for name in wanted})
    weights = []
    for i, stage in enumerate(stages):
        name, channels = f"lin{i}.model.1.weight", [m for m in stage if isinstance(m, nn.Conv2d)][-1].out_channels
        if name not in heads or heads[name].numel() != channels:
            raise ValueError(f"linear heads of {network}: expected {name} with {channels} weights")
        weights.append(heads[name].flatten())
    return FeatureDistance(stages, weights, IMAGENET_SHIFT, IMAGENET_SCALE)


def _vgg16() -> list[nn.Sequential]:
    """relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 (Simonyan and Zisserman 2015, table 1, column D)."""
    stages, before = [], 3
    for i, row in enumerate(VGG16):
        stage = nn.Sequential(*([nn.MaxPool2d(2)] if i else []))
        for width in row:
            stage.extend([nn.Conv2d(before, width, 3, padding=1), nn.ReLU()])
            before = width
        stages.append(stage)
    return stages


def _alexnet() -> list[nn.Sequential]:
    """relu1 to relu5 of torchvision's AlexNet (Krizhevsky 2014)."""
    pool = [nn.MaxPool2d(3, 2)]
    return [
        nn.Sequential(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU()),
        nn.Sequential(*pool, nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]


def random_features(channels: int, size: int, seed: int = 0, width: int = 32) -> FeatureDistance:
    """Distance in the features of an untrained network: weak, but it sees edges and textures, not only pixels.

    Convolutions with normal weights (He et al. 2015) from a generator of their own, halved until 4 pixels are left or
    four times. size: side of the images, in pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    stages: list[nn.Module] = []
    before, after, side = channels, width, size
    while not stages or (side > 4 and len(stages) < 4):
        convolution = nn.Conv2d(before, after, 3, stride=1 if not stages else 2, padding=1, bias=False)
        with torch.no_grad():
            convolution.weight.normal_(0, (2 / (9 * before)) ** 0.5, generator=generator)
        stages.append(nn.Sequential(convolution, nn.LeakyReLU(0.2)))
        side, before, after = side if len(stages) == 1 else (side + 1) // 2, after, min(after * 2, 128)
    return FeatureDistance(stages)


class Resized(nn.Module):
    """A map brought to `size` x `size` pixels, for a network that knows one size only."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, H, W] -> [n, c, size, size]."""
        if x.shape[-1] == self.size:
            return x
        return F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
