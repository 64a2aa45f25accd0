"""Latents of one and of three sides through every stage: an autoencoder that is put into models/autoencoders/ makes
sequences or clips of images, and all that comes behind it takes them as they are.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import models.autoencoders
from pipeline.artifacts import Artifact
from pipeline.data.latent_pool import open_latents
from pipeline.errors import UserError
from pipeline.files import read_json
from tests.put_in import put_in

SOURCE = '''\
"""Patches of an image as a sequence, or its channels as the frames of a clip. Put here by a test."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from models import posterior
from models.patches import patched, unpatched


@dataclass(frozen=True)
class Config:
    """Shape."""

    clip: bool = False


class Model(nn.Module):
    """x <-> z, without loss."""

    def __init__(self, config, channels):
        super().__init__()
        self.clip, self.channels = config.clip, channels
        self.latent_channels = 4 if config.clip else 4 * channels
        self.scale = nn.Parameter(torch.zeros(1))

    def latent_sides(self, sides):
        if any(side % 2 for side in sides):
            raise ValueError(f"sides: expected even ones, got {sides}")
        height, width = (side // 2 for side in sides)
        return (self.channels, height, width) if self.clip else (height * width,)

    def data_sides(self, sides):
        return tuple(2 * side for side in sides[1:]) if self.clip else (2 * math.isqrt(sides[0]),) * 2

    def encode(self, x):
        if self.clip:  # [n, c, H, W] -> [n, c, 1, H, W] -> [n c, T, 4] -> [n, 4, c, h, w]
            tokens = patched(x.flatten(0, 1)[:, None], (2, 2)).transpose(1, 2)
            z = tokens.reshape(len(x), self.channels, 4, x.shape[2] // 2, x.shape[3] // 2).transpose(1, 2)
        else:
            z = patched(x, (2, 2)).transpose(1, 2)
        return posterior.certain(z * self.scale.exp())

    def decode(self, z):
        z = z.float() * (-self.scale).exp()
        if self.clip:
            grid = z.shape[3:]
            tokens = z.transpose(1, 2).reshape(len(z) * self.channels, 4, -1).transpose(1, 2)
            return unpatched(tokens, grid, (2, 2)).reshape(len(z), self.channels, *(2 * side for side in grid))
        side = math.isqrt(z.shape[2])
        return unpatched(z.transpose(1, 2), (side, side), (2, 2))

    def forward(self, x, noise):
        moments = self.encode(x)
        return self.decode(posterior.split(moments)[0]), moments
'''

QUICK = (
    "evaluate.samples=8", "evaluate.steps=2", "evaluate.bootstrap=2", "evaluate.batch_size=8",
    "evaluate.extractor.steps=2", "latents.views=[as_is, flip]",
)  # fmt: skip
SIDES = {"sequence": ("false", [12, 16], 1), "clip": ("true", [4, 3, 4, 4], 2)}  # clip, shape, patch of the backbone


@pytest.fixture
def kind() -> Iterator[str]:
    with put_in("autoencoders", SOURCE) as name:
        yield name


@pytest.mark.parametrize("what", SIDES)
def test_from_images_to_a_model_that_samples(small, kind, what):
    from pipeline.generate import load_pretrained

    clip, shape, patch = SIDES[what]
    given = (f"autoencoder.model={{kind: {kind}, clip: {clip}}}", f"diffusion.backbone.patch={patch}", *QUICK)
    said = small.run("run", "--dry-run", *given)
    assert said.code == 0, said.err
    assert f"latents: {' x '.join(map(str, shape))}, of images of 3 x 8 x 8" in said.out
    said = small.run("run", *given)
    assert said.code == 0, said.err
    encode, diffusion, register = (
        Artifact.load(small.manifests(stage)[0].parent) for stage in ("encode", "diffusion", "register")
    )
    assert encode.summary["shape"] == shape
    index = open_latents(encode, "train")
    assert index.shape == (2 * shape[0], *shape[1:]) and not index.unequal
    means = np.split(np.stack([index.moments(range(len(index)), view) for view in (0, 1)]), 2, axis=2)[0]
    found = means.astype(np.float64).mean((0, 1, *range(3, means.ndim)))
    np.testing.assert_allclose(read_json(encode.path / "latents.json")["mean"], found, atol=1e-3)
    assert read_json(diffusion.path / "model.json")["latent"] == {"channels": shape[0], "size": shape[1:]}
    assert diffusion.summary["val_loss"] > 0
    assert "gaussian_loss" not in diffusion.summary and len(index) <= math.prod(shape)  # it would know them by heart

    for place in (diffusion.path, register.path / "model"):
        model = load_pretrained(place, "cpu", small.root)
        assert model.sides == [tuple(shape[1:])] and model.shapes == [(8, 8)] and model.channels == 3
        images = model.sample(n=3, steps=2, seed=1, batch_size=2)
        assert images.shape == (3, 8, 8, 3) and len({image.tobytes() for image in images}) == 3
        np.testing.assert_array_equal(images[2:], model.images(model.request(n=1, steps=2, seed=1, batch_size=2), 2))
        request = model.request(n=3, steps=2, seed=1, batch_size=2)
        assert [z.shape for z in model.latents(request)] == [(2, *shape)] * 2
        back = model.decode(model.encode(images))
        assert np.abs(back.astype(int) - images).max() <= 1
        model.autoencoder.of_images = False  # as that of a text would say
        assert model.raw(next(model.latents(request)))[0].shape == (2, 3, 8, 8)
        for refused, value in (
            (model.images, request),
            (model.encode, images),
            (model.decode, next(model.latents(request))),
        ):
            with pytest.raises(UserError, match="is for models of images, and this one is of other data"):
                refused(value)
    out = small.folder / "samples"
    said = small.ldm("sample", str(register.path / "model"), "--out", str(out), "-n", "2", "--steps", "2")
    assert said.code == 0, said.err
    said = small.run("run", *given)
    assert said.code == 0 and len(small.manifests("encode")) == 1  # found cached

    for verb, more in (("inpaint", ["--pad", "2"]), ("restore", ["--task", "denoise"])):
        said = small.ldm(verb, str(diffusion.path), str(out / "000000.png"), *more, "--out", str(small.folder / verb))
        count = len(shape) - 1
        assert (
            said.code == 2
            and f"{verb}: needs latents that lie over the image, and those of this model have" in said.err
        )
        assert f"{count} side" in said.err and "Traceback" not in said.err
    said = small.ldm("export", str(register.path / "model"), "--format", "diffusers", "--out", str(small.folder / "d"))
    assert said.code == 2 and f"latents of sides {shape[1:]}" in said.err


def test_what_does_not_go_with_them_is_one_line(small, kind):
    model = f"autoencoder.model={{kind: {kind}}}"
    for *given, line in (
        ("diffusion.backbone={kind: unet, preset: tiny}", "unet takes latents of two sides, got [16]; give a dit"),
        ("data.size=16", "data.buckets={max_ratio: 2, multiple: 8}", "`data.buckets`: latents of sides [64] have no"),
        ("diffusion.backbone.frames=2", "frames: 2 given, of latents of three sides, time first; these have 1"),
        ("data.size=9", "sides: expected even ones, got (9, 9)"),
    ):
        said = small.run("run", "--dry-run", model, *given)
        assert said.code == 2 and line in said.err and len(said.err.strip().splitlines()) == 1, said.err
    file = Path(models.autoencoders.__file__).with_name(f"{kind}.py")
    file.write_text(f"{SOURCE}\n\nModel.of_images = False\n")
    sys.modules.pop(f"models.autoencoders.{kind}", None)
    said = small.run("run", "--dry-run", model, "latents.views=[as_is, flip]")
    assert said.code == 2 and "`latents.views`: as_is, flip are of images, and `autoencoder.model` is of" in said.err
