"""Inception v3 as the Fréchet distances in papers use it: the network of 2015, 2048 features, from its weights file.

The layers are those of torch-fidelity and pytorch-fid (Apache 2.0), which follow the TensorFlow graph of Heusel et al.
(2017), and have their names, so that `pt_inception-2015-12-05-6726825d.pth` loads. Written out here since
torch-fidelity imports torchvision, whose builds do not fit every build of torch, and unpickles the file.

How images are brought to 299 pixels changes figures as much as some improvements do (Parmar et al., 2022). Two rules:

    clean-fid      bicubic, antialiased, in floating point; then (x - 128) / 128
    pytorch-fid    bilinear, not antialiased where an image is made smaller; then 2 x / 255 - 1
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import UserError

SIDE = 299  # pixels that the network looks at
FEATURES = 2048
DIGEST = "6726825d"  # first digits of the SHA-256 of the published file
RULES = {"clean-fid": "bicubic antialiased 299", "pytorch-fid": "bilinear 299"}  # part of the features' identity


def load(path: Path, rule: str = "clean-fid") -> Inception:
    """The network with the weights of a file, in evaluation mode. Only tensors are read. UserError for another file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: not a file of weights ({first[0][:100]}); give {_expected()}") from None
    with torch.device("meta"):
        network = Inception(rule)
    try:
        network.load_state_dict(state, assign=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        lines = str(error).strip().splitlines()
        raise UserError(f"{path}: weights of another network ({lines[-1].strip()[:100]}); give {_expected()}") from None
    return network.eval().requires_grad_(False)


def _expected() -> str:
    return f"pt_inception-2015-12-05-{DIGEST}.pth, as pytorch-fid and torch-fidelity publish it"


def prepared(images: Tensor, rule: str = "clean-fid") -> Tensor:
    """uint8 [n, C, H, W] -> float32 [n, 3, 299, 299], gray repeated, as a rule gives them to the network."""
    if rule == "clean-fid":
        return (enlarge(images) - 128) / 128  # the graph's own normalisation
    x = images.float().expand(-1, 3, -1, -1) / 255
    return 2 * functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False) - 1


def enlarge(images: Tensor) -> Tensor:
    """uint8 [n, C, H, W] -> float32 [n, 3, 299, 299] in [0, 255], gray repeated; bicubic, antialiased where smaller."""
    x = images.float().expand(-1, 3, -1, -1)
    if x.shape[-2:] == (SIDE, SIDE):
        return x
    x = functional.interpolate(x, size=(SIDE, SIDE), mode="bicubic", antialias=True)  # Pillow's filter, not quantised
    return x.clamp(0, 255)  # clean-fid cuts what the filter throws beyond


class Unit(nn.Module):
    """Convolution, batch norm, ReLU. `side` is the kernel's, `pad` keeps the size where it is half of that."""

    def __init__(self, before: int, after: int, side: int | tuple[int, int], stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        height, width = (side, side) if isinstance(side, int) else side
        padding = (height // 2, width // 2) if pad else 0
        self.conv = nn.Conv2d(before, after, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    """3x3 mean over the pixels that exist: TensorFlow does not count the padding."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    def __init__(self, before: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Unit(before, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Unit(before, 48, 1), Unit(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3 = (
            Unit(before, 64, 1),
            Unit(64, 96, 3),
            Unit(96, 96, 3),
        )
        self.branch_pool = Unit(before, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_average(x))], 1)


class BlockB(nn.Module):
    def __init__(self, before: int) -> None:
        super().__init__()
        self.branch3x3 = Unit(before, 384, 3, 2, pad=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(before, 64, 1), Unit(64, 96, 3)
        self.branch3x3dbl_3 = Unit(96, 96, 3, 2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Unit(before, 192, 1)
        self.branch7x7_1, self.branch7x7_2, self.branch7x7_3 = (
            Unit(before, width, 1),
            Unit(width, width, row),
            Unit(width, 192, column),
        )
        self.branch7x7dbl_1 = Unit(before, width, 1)
        self.branch7x7dbl_2, self.branch7x7dbl_3 = Unit(width, width, column), Unit(width, width, row)
        self.branch7x7dbl_4, self.branch7x7dbl_5 = Unit(width, width, column), Unit(width, 192, row)
        self.branch_pool = Unit(before, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    def __init__(self, before: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Unit(before, 192, 1), Unit(192, 320, 3, 2, pad=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = Unit(before, 192, 1), Unit(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = Unit(192, 192, (7, 1)), Unit(192, 192, 3, 2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, functional.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """`largest`: the last block's pool takes the maximum, an oddity of the published graph that its figures rest on."""

    def __init__(self, before: int, largest: bool) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.largest = largest
        self.branch1x1 = Unit(before, 320, 1)
        self.branch3x3_1, self.branch3x3_2a, self.branch3x3_2b = (
            Unit(before, 384, 1),
            Unit(384, 384, row),
            Unit(384, 384, column),
        )
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(before, 448, 1), Unit(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Unit(384, 384, row), Unit(384, 384, column)
        self.branch_pool = Unit(before, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self.largest else _average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """uint8 images [n, C, H, W] -> features [n, 2048]. `fc` is in the file and stays unused."""

    def __init__(self, rule: str = "clean-fid") -> None:
        super().__init__()
        self.rule = rule
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2, pad=False)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, largest=False), BlockE(2048, largest=True)
        self.fc = nn.Linear(FEATURES, 1008)

    def forward(self, images: Tensor) -> Tensor:
        x = prepared(images, self.rule)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, stride=2)
        x = functional.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return x.mean((2, 3))  # [n, 2048, 8, 8] -> [n, 2048]
