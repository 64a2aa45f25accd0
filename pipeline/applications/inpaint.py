"""`ldm inpaint`: what is missing of an image, drawn anew to fit what is there; also beyond its border.

A walk begins from a smooth filling, under as much noise as hides what is as large as the hole. Each answer of the
denoiser is pulled to what agrees with the known pixels, through the decoder, as in `restore.py`
(`models/diffusion/inverse.py`, `linearised`): known latents would not do, since strokes of a brush touch nearly all.
Known pixels come back as they were; the drawn ones beside them take on the step in colour that the autoencoder would
leave, so that there is no seam. An image larger than the model's is filled window by window, each of which takes what
was filled before for known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, sparse
from scipy.sparse import linalg

from models.diffusion import inverse, operators, samplers
from models.diffusion.inversion import renoised
from models.diffusion.process import make_path
from pipeline.applications import given_images, restore
from pipeline.applications.edit import check_model, request_of
from pipeline.data.pictures import Images
from pipeline.errors import UserError
from pipeline.generate import sampling
from pipeline.generate.generator import Generator

Array = np.ndarray[Any, Any]
HOW: dict[str, Any] = {"sampler": "dpmpp_sde", "steps": 12}
FIRST = (1.0, 20.0)  # noise levels where a walk may begin
TEMPERATURE = 0.7  # at 1 the 3 dB that a sample is further off than the mean cost faces their identity
SEAM = 2.0  # pixels: standard deviation of what the step in colour at the border is spread by


def inpaint(
    model: Generator,
    image: Images,
    mask: Array,
    n: int = 1,
    to: Mapping[str, Any] | None = None,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    **how: Any,
) -> Images:
    """n images uint8 [n, H, W, C]: `image` [H, W, C] where mask [H, W] is 0, and something that fits elsewhere.

    H and W are at least the model's size. to: what shall be true of the image, by name (an attribute, `class`,
    `caption`). temperature: in [0, 1], a factor of all noise: less is smoother, and drawings are more alike. how:
    steps, sampler, guidance and the like, as `Generator.sample` has them. Raises UserError for values the model does
    not know, sizes that do not fit, and a mask that asks for nothing.
    """
    height, width = model.shapes[0]
    request = requested(model, n, to, temperature, seed, **how)
    check(model, image, mask)
    filled, left = np.repeat(image[None], n, axis=0), mask.astype(np.float32)
    places = [(slice(y, y + height), slice(x, x + width)) for y, x in windows(left, height, width)]
    number = 0
    while open_places := [place for place in places if left[place].any()]:
        down, across = min(open_places, key=lambda place: left[place].sum())  # of which most is known: from there on
        part, number = filled[:, down, across], number + 1
        filled[:, down, across] = _window(model, part, left[down, across], request, number, temperature)
        left[down, across] = 0
    return filled


def requested(
    model: Generator, n: int, to: Mapping[str, Any] | None, temperature: float, seed: int, **how: Any
) -> dict[str, Any]:
    """What `inpaint` asks the model, checked; arguments are those of `inpaint`."""
    if not 0 <= temperature <= 1:
        raise UserError(f"temperature: {temperature:g} given, expected 0 to 1")
    check_model(model, "inpaint", None if to else "--set")
    return request_of(model, to or {}, n, seed=seed, **{**HOW, **how})


def check(model: Generator, image: Images, mask: Array) -> None:
    """UserError for an image [H, W, C] and a mask [H, W] that do not fit each other, or the model."""
    height, width = model.shapes[0]
    if mask.shape != image.shape[:2]:
        raise UserError(f"mask: of {_by(mask.shape)} pixels, and the image of {_by(image.shape)}; give one of its size")
    if image.shape[0] < height or image.shape[1] < width:
        raise UserError(f"image: {_by(image.shape)} pixels, and this model makes {height} x {width}; give a larger one")
    if not mask.any():
        raise UserError("mask: marks nothing, so nothing would be drawn; paint white what is to be new")


def canvas(file: Path, mask: Path | None, pad: int, channels: int) -> tuple[Images, Array]:
    """An image's file at its own size, and the mask of what is to be drawn, `pad` pixels more on all sides."""
    pixels = given_images.read(file, channels, None)
    return padded(pixels, given_images.read_mask(mask, pixels.shape[:2], exact=True) if mask else None, pad)


def padded(image: Images, mask: Array | None, pad: int) -> tuple[Images, Array]:
    """An image [H, W, C] and its mask with `pad` pixels more on all sides, which the mask marks."""
    marked = np.zeros(image.shape[:2], np.float32) if mask is None else mask
    sides = ((pad, pad), (pad, pad))
    return np.pad(image, (*sides, (0, 0)), mode="edge"), np.pad(marked, sides, constant_values=1.0)


def windows(mask: Array, height: int, width: int) -> list[tuple[int, int]]:
    """Corners (top, left) of windows that hold all of a mask [H, W] together, side by side with half of each over the
    one before: a single one in the middle of the mask where that is enough."""
    spans = []
    for axis, side in ((1, height), (0, width)):
        (there,) = np.nonzero(mask.any(axis=axis))
        first, last, most = int(there[0]), int(there[-1]) + 1, mask.shape[1 - axis] - side
        begin = (first + last - side) // 2 if last - first <= side else first - side // 4
        starts = [min(max(0, begin), most)]
        while starts[-1] + side < last:
            starts.append(min(starts[-1] + side // 2, most))
        spans.append(starts)
    return [(top, start) for top in spans[0] for start in spans[1]]


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _window(
    model: Generator, images: Images, mask: Array, request: dict[str, Any], number: int, temperature: float
) -> Images:
    """Images [n, h, w, C] of the model's size, with what the mask marks drawn anew. number: of the window."""
    path, known = make_path(**model.options["path"]), 1 - mask
    given = filled(images, known)
    operator = operators.masked(torch.from_numpy(known).to(model.device), restore.LOST)
    seen = operators.through(restore.decoder(model), operator)
    times, made = restore.walk(path, first_level(mask, model.autoencoder.factor), request["steps"]), []
    for begin in range(0, len(images), request["batch_size"]):
        rows = range(begin, min(begin + request["batch_size"], len(images)))
        part = given[rows.start : rows.stop]
        z = model.encode(part).to(model.device)
        y = operator.forward(torch.from_numpy(part.transpose(0, 3, 1, 2)).to(z) / 127.5 - 1)
        asked, null = model.told(request, rows)

        def noise(draw: int | str, rows: range = rows, shape: torch.Size = z.shape[1:]) -> torch.Tensor:
            fresh = sampling.noise_of(request["seed"], f"inpaint/{number}/{draw}", rows, shape, model.device)
            return temperature * fresh

        with torch.no_grad():
            lead = model.led(request, asked, null)
            lead = inverse.linearised(lead, path, seen, y, restore.SPREAD, restore.SOLVES)
            x = renoised(path, z, noise("start"), times[0])
            z = samplers.sample(request["sampler"], lead, path, x, times, asked[0], noise)
        made.append(model.decode(z))
    return _joined(images, np.concatenate(made), known)


def first_level(mask: Array, factor: int) -> float:
    """The noise level where a walk begins: the radius, in latents, of the largest circle that nothing is known in. The
    mean of as many latents has a noise of about 1 there, as the latents themselves have."""
    if mask.all():
        return FIRST[1]
    return float(np.clip(ndimage.distance_transform_edt(mask).max() / factor, *FIRST))


def filled(images: Images, known: Array) -> Images:
    """Images [n, h, w, C] with a smooth surface where known [h, w] is 0: each pixel there is the mean of its neighbours
    (Laplace's equation; beyond the border it goes on as at it). Gray where nothing is known."""
    if not known.any():
        return np.full_like(images, 127)
    height, width = known.shape
    number = np.arange(height * width).reshape(height, width)
    pairs = np.concatenate([
        np.stack([number[:-1].ravel(), number[1:].ravel()]), np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()])
    ], axis=1)  # fmt: skip
    ones = np.ones(pairs.shape[1])
    beside = sparse.coo_array((ones, pairs), (known.size, known.size)).tocsr()
    beside = beside + beside.T
    hole, there = np.flatnonzero(known == 0), np.flatnonzero(known)
    pixels = images.reshape(len(images), known.size, -1).transpose(1, 0, 2).reshape(known.size, -1).astype(np.float64)
    matrix = sparse.diags_array(beside.sum(axis=1)[hole]) - beside[hole][:, hole]
    pixels[hole] = linalg.splu(matrix.tocsc()).solve(beside[hole][:, there] @ pixels[there])
    found = pixels.reshape(known.size, len(images), -1).transpose(1, 0, 2).reshape(images.shape)
    return np.rint(found).clip(0, 255).astype(np.uint8)


def _joined(images: Images, drawn: Images, known: Array) -> Images:
    """`images` where known [h, w] is 1; elsewhere `drawn`, plus the difference of the two at the border, spread into
    the hole and falling off in it."""
    there = torch.from_numpy(known)[None, None].float()
    apart = torch.from_numpy(images.astype(np.float32) - drawn).permute(0, 3, 1, 2) * there
    near = _blurred(there)
    step = (_blurred(apart) / near.clamp(min=1e-3)) * (2 * near).clamp(max=1.0)
    whole = drawn + step.permute(0, 2, 3, 1).numpy() * (1 - known[None, :, :, None])
    return np.where(known[None, :, :, None] == 1, images, np.rint(whole).clip(0, 255).astype(np.uint8))


def _blurred(x: torch.Tensor) -> torch.Tensor:
    """x [n, c, h, w] under a Gaussian of SEAM pixels; beyond the border as at it."""
    reach = int(3 * SEAM)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / SEAM) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.pad(x, (reach,) * 4, mode="replicate")
    x = F.conv2d(x, kernel, groups=x.shape[1])
    return F.conv2d(x, kernel.transpose(2, 3), groups=x.shape[1])
