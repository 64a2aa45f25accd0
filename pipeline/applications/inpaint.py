"""`ldm inpaint`: what is missing of an image, drawn anew to fit what is there; also beyond its border.

A walk begins from a smooth filling, under as much noise as hides what is as large as the hole. Each answer of the
denoiser is pulled to what agrees with the known pixels, through the decoder, as in `restore.py`
(`models/diffusion/inverse.py`, `linearised`): known latents would not do, since strokes of a brush touch nearly all.
Known pixels come back as they were. What the drawn image lacks there goes on smoothly into the hole, so that there is
no seam, and a stroke gets back what the autoencoder has lost (Pérez et al. 2003, "Poisson Image Editing"). An image
larger than the model's is filled window by window, each of which takes what was filled before for known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage, sparse
from scipy.sparse import linalg

from models.diffusion import inverse, operators, samplers
from models.diffusion.inversion import renoised
from models.diffusion.process import make_path
from pipeline.applications import given_images, restore
from pipeline.applications.edit import check_model, check_places, request_of
from pipeline.data.pictures import Images
from pipeline.errors import UserError
from pipeline.generate import sampling
from pipeline.generate.generator import Generator

Array = np.ndarray[Any, Any]
HOW: dict[str, Any] = {"sampler": "dpmpp_sde", "steps": 12}
FIRST = (1.0, 20.0)  # noise levels where a walk may begin
TEMPERATURE = 0.7  # at 1 the 3 dB that a sample is further off than the mean cost faces their identity


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
    request = requested(model, n, to, temperature, seed, **how)
    height, width = model.shapes[0]
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
    check_places(model, "inpaint")
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
    """An image [H, W, C] and its mask with `pad` pixels more on all sides, which the mask marks. UserError for more
    than there may be."""
    marked = np.zeros(image.shape[:2], np.float32) if mask is None else mask
    height, width = (side + 2 * pad for side in image.shape[:2])
    if height * width > given_images.MOST:
        raise UserError(f"pad: {pad} makes {height} x {width} pixels, expected {given_images.MOST:,} at most")
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
    given = _bytes(smooth(images, known)) if known.any() else np.full_like(images, 127)
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


def smooth(values: Array, known: Array) -> Array:
    """Values [n, h, w, C], float64, where known [h, w] is 1; elsewhere each is the mean of its neighbours (Laplace's
    equation; beyond the border it goes on as at it). Something must be known."""
    cells = np.arange(known.size).reshape(known.shape)
    pairs = np.hstack([[cells[:-1].ravel(), cells[1:].ravel()], [cells[:, :-1].ravel(), cells[:, 1:].ravel()]])
    one_way = sparse.coo_array((np.ones(pairs.shape[1]), pairs), (known.size, known.size)).tocsr()
    beside = one_way + one_way.T
    hole, there = np.flatnonzero(known == 0), np.flatnonzero(known)
    found = np.moveaxis(values, 0, 2).reshape(known.size, -1).astype(np.float64)  # [h w, n C]
    matrix = sparse.diags_array(beside.sum(axis=1)[hole]) - beside[hole][:, hole]
    found[hole] = linalg.splu(matrix.tocsc()).solve(beside[hole][:, there] @ found[there])
    return np.moveaxis(found.reshape(*known.shape, len(values), -1), 2, 0)


def _joined(images: Images, drawn: Images, known: Array) -> Images:
    """`images` where known [h, w] is 1; elsewhere `drawn`, and the smooth continuation of the difference of the two."""
    if not known.any():
        return drawn
    apart = smooth(images.astype(np.float64) - drawn, known)
    return _bytes(drawn + apart)


def _bytes(values: Array) -> Images:
    return np.rint(values).clip(0, 255).astype(np.uint8)
