"""A new backbone is one file: put into models/backbones/, it is found, checked, trained and sampled by its `kind`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.put_in import put_in

SOURCE = '''\
"""A mixer: convolutions over the grid, steered by time and condition. Put here by a test."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.conditioning import Embedded
from models.layers import TimeEmbedding


@dataclass(frozen=True)
class Config:
    """Shape of a mixer."""

    width: int = 32  # channels
    depth: int = 2  # blocks

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise ValueError(f"width, depth: expected at least 1, got {self.width}, {self.depth}")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.steer = nn.Linear(width, width)
        self.mix = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return h + self.mix(F.silu(self.norm(h) * (1 + self.steer(c))[:, :, None, None]))


class Model(nn.Module):
    """(x, t, condition) -> prediction."""

    def __init__(self, config: Config, channels: int, size: int) -> None:
        super().__init__()
        self.condition_width = config.width
        self.time = TimeEmbedding(config.width)
        self.start = nn.Conv2d(channels, config.width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(config.width) for _ in range(config.depth))
        self.end = nn.Conv2d(config.width, channels, 3, padding=1)
        nn.init.zeros_(self.end.weight)

    def forward(self, x: Tensor, t: Tensor, condition: Embedded) -> Tensor:
        c = F.silu(self.time(t).float() + condition.vector.float())
        h = self.start(x)
        for block in self.blocks:
            h = block(h, c)
        return self.end(h).to(torch.float32)
'''


@pytest.fixture
def mixer() -> Iterator[str]:
    with put_in("backbones", SOURCE) as name:
        yield name


def test_a_new_backbone_trains_by_its_kind_alone(small, mixer):
    from safetensors.torch import load_file

    from pipeline.artifacts import Artifact

    assert len(SOURCE.splitlines()) <= 60
    said = small.run("diffusion", f"diffusion.backbone={{kind: {mixer}, wdth: 16}}")
    assert said.code == 2 and f"wdth: {mixer} has no such field; did you mean 'width'" in said.err
    said = small.run("diffusion", f"diffusion.backbone={{kind: {mixer}, width: 16}}")
    assert said.code == 0, said.err
    artifact = Artifact.load(small.manifests("diffusion")[0].parent)
    assert artifact.recipe["backbone"] == {"kind": mixer, "width": 16, "depth": 2}
    assert artifact.summary["step"] == 2 and artifact.summary["val_loss"] > 0
    weights = load_file(artifact.path / "live.safetensors")
    assert weights["backbone.blocks.1.mix.weight"].shape == (16, 16, 3, 3)
    assert weights["backbone.end.weight"].abs().sum() > 0  # it began at zero: it was trained
    out = small.folder / "samples"
    said = small.ldm("sample", str(artifact.path), "--out", str(out), "-n", "2", "--steps", "2", "--classes", "b")
    assert said.code == 0, said.err
    assert len(list(out.rglob("*.png"))) == 3  # two images and the grid


def test_without_the_file_the_kind_is_unknown(small):
    said = small.run("diffusion", "diffusion.backbone.kind=put_in_by_a_test")
    assert said.code == 2 and "no backbones kind 'put_in_by_a_test'" in said.err
