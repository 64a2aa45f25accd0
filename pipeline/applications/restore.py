"""`ldm restore`: images without their noise or blur, larger, in colour, or as they were before they became JPEG files.

No training: any latent diffusion model says what images are like, and each answer of its denoiser is pulled to what
agrees with the measured image, through the decoder (`models/diffusion/inverse.py`, `linearised`). An image larger than
the model's is cut into windows that overlap, whose answers are blended at each step: one walk, and no seam. At the end
the measured pixels give back what the autoencoder has lost. What is measured is `models/diffusion/operators.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.conditioning import Conditions
from models.diffusion import inverse, operators, samplers
from models.diffusion.inversion import renoised
from models.diffusion.operators import Linear
from models.diffusion.process import Path, make_path
from pipeline.applications import given_images
from pipeline.applications.edit import check_model, check_places, request_of
from pipeline.applications.jpeg_tables import tables
from pipeline.data.filters import noise_level
from pipeline.data.pictures import Images
from pipeline.errors import UserError
from pipeline.generate import sampling
from pipeline.generate.generator import Generator

TASKS = {  # what each must be told, and what it may be told
    "denoise": ((), ("noise",)),
    "deblur": (("blur",), ("noise",)),
    "superres": (("factor",), ("noise",)),
    "colorize": ((), ("noise",)),
    "jpeg": (("quality",), ()),
}
SAID = {
    "noise": ("gray levels, above 0 to 255", 1e-3, 255),
    "blur": ("pixels, 0.2 to 16", 0.2, 16),
    "factor": ("a whole number from 2 to 16", 2, 16),
    "quality": ("a whole number from 1 to 100", 1, 100),
}
HOW: dict[str, Any] = {"sampler": "dpmpp_sde", "steps": 12}
FIRST, LAST = 3.0, 0.05  # noise levels of the walk: from where large shapes are open, to where nothing changes more
LOST = 0.04  # deviation of what an autoencoder loses, of a range of 2: 34 dB
SHOWN = 1.5  # times what the measured pixels show to be wrong at the end: details are nearest then
ANY = 3.0  # deviation of what may be wrong, where what is measured is to hold as it is
ROUNDING = 1 / math.sqrt(12) / 127.5  # deviation of what 8 bits lose
# deviation of what JPEG takes of a coefficient, of its step: most are rounded to 0 and were near it (0.09 in 64 faces
# of quality 10, where the others have 0.30)
ROUNDED = 0.08
SPREAD = 4.0  # 1 draws finer details and is 0.7 dB further from the clean image, at noise of 50
SOLVES, LAST_SOLVES = 3, 40
Pair = tuple[int, int]  # height and width, or top and left, in pixels


def restore(
    model: Generator,
    images: Images,
    task: str,
    noise: float | None = None,
    blur: float | None = None,
    factor: int | None = None,
    quality: int | None = None,
    to: Mapping[str, Any] | None = None,
    seed: int = 0,
    first: int = 0,
    **how: Any,
) -> Images:
    """Restored uint8 [n, H, W, C] of measured images [n, h, w, C] of one size; "superres" has H = factor h, and
    "colorize" takes one channel.

    noise: deviation of white noise in the measured image, in gray levels; None: estimated by "denoise", else none.
    blur: deviation of a Gaussian, in pixels. factor: of a bicubic reduction. quality: of the JPEG file. to: what is
    true of the images, by name (an attribute, `class`, `caption`). first: number of the first image, by which noise is
    drawn. how: steps, sampler, guidance and the like, as `Generator.sample` has them. H and W are at least the model's
    size. Raises UserError for values that cannot be, and for those the model does not know.
    """
    given = {"noise": noise, "blur": blur, "factor": factor, "quality": quality}
    request = requested(model, len(images), task, given, to, seed, **how)
    check(model, images.shape, task, factor)
    if task == "denoise" and noise is None:
        planes = images.transpose(0, 3, 1, 2).reshape(-1, *images.shape[1:3]).astype(np.float64)
        given["noise"] = float(np.mean([noise_level(plane) for plane in planes]))
    scale, window, unit = factor or 1, model.shapes[0], _unit(model, task, factor)
    height, width = images.shape[1] * scale, images.shape[2] * scale
    sides = (-(-height // unit) * unit, -(-width // unit) * unit)
    more = [(0, sides[0] // scale - images.shape[1]), (0, sides[1] // scale - images.shape[2])]
    padded = np.pad(images, ((0, 0), *more, (0, 0)), mode="edge")
    places = [(top, left) for top in starts(sides[0], window[0], unit) for left in starts(sides[1], window[1], unit)]
    made, group = [], max(1, request["batch_size"] // len(places))
    for begin in range(0, len(images), group):
        rows = range(begin, min(begin + group, len(images)))
        y = torch.from_numpy(padded[rows.start : rows.stop].transpose(0, 3, 1, 2)).to(model.device).float() / 127.5 - 1
        x = _restored(model, y, task, given, sides, places, request, rows, first)
        made.append(_bytes(x))
    return np.concatenate(made)[:, :height, :width]


def requested(
    model: Generator,
    n: int,
    task: str,
    given: Mapping[str, float | None],
    to: Mapping[str, Any] | None,
    seed: int,
    **how: Any,
) -> dict[str, Any]:
    """What `restore` asks the model, checked. given: noise, blur, factor, quality, None where it is not."""
    if task not in TASKS:
        raise UserError(f"task: {task!r} given, expected one of {', '.join(TASKS)}")
    needed, allowed = TASKS[task]
    for name, value in given.items():
        said, low, high = SAID[name]
        if value is None and name in needed:
            raise UserError(f"{name}: {task} must know it; give {said}")
        if value is not None and name not in needed + allowed:
            raise UserError(f"{name}: {task} is not told it; leave it out")
        whole = not isinstance(low, int) or isinstance(value, Integral)
        if value is not None and not (whole and low <= value <= high):  # NaN is not, either
            raise UserError(f"{name}: {value} given, expected {said}")
    check_model(model, "restore", None if to else "--set")
    check_places(model, "restore")
    return request_of(model, to or {}, n, seed=seed, **{**HOW, **how})


def check(model: Generator, shape: Sequence[int], task: str, factor: int | None) -> None:
    """UserError for measured images [n, h, w, C] that do not fit the model, and for a model that does not fit."""
    (height, width), channels, unit = model.shapes[0], model.channels, _unit(model, task, factor)
    if task == "colorize" and channels == 1:
        raise UserError("task: colorize needs a model of colour, and this one makes gray images")
    if height % unit or width % unit:
        what = "jpeg: blocks of 16 pixels" if task == "jpeg" else f"factor: {factor}, which"
        raise UserError(f"{what} must divide the {height} x {width} pixels of this model; give another")
    if shape[3] != (wanted := 1 if task == "colorize" else channels):
        raise UserError(f"image: of {shape[3]} channels, expected {wanted}")
    large = shape[1] * (factor or 1), shape[2] * (factor or 1)
    if large[0] * large[1] > given_images.MOST:
        raise UserError(
            f"image: {large[0]} x {large[1]} pixels would come out, expected {given_images.MOST:,} at most; give less"
        )
    if large[0] < height or large[1] < width:
        raise UserError(
            f"image: {large[0]} x {large[1]} pixels would come out, and this model makes {height} x {width}; "
            "give a larger one"
        )


def _unit(model: Generator, task: str, factor: int | None) -> int:
    """Pixels that must divide windows and their places: of a latent, of a measured pixel, of what JPEG rounds."""
    return math.lcm(model.autoencoder.factor, factor or 1, 16 if task == "jpeg" else 1)


def starts(length: int, side: int, unit: int) -> list[int]:
    """Where windows begin that cover a length, at multiples of a unit, about evenly; they overlap by a quarter at
    least, but for rounding."""
    count = -(-(length - side) // max(unit, side * 3 // 4)) + 1
    return [int(at) // unit * unit for at in np.linspace(0, length - side, count)]


def cut(x: Tensor, places: Sequence[Pair], window: Pair, ratio: int) -> Tensor:
    """Windows [places * n, C, h, w] of x [n, C, H, W], place after place. ratio: pixels of an element, a side."""
    (height, width), corners = window, [(top // ratio, left // ratio) for top, left in places]
    return torch.cat([x[..., y : y + height // ratio, x0 : x0 + width // ratio] for y, x0 in corners])


def blended(parts: Tensor, places: Sequence[Pair], sides: Pair, ratio: int) -> Tensor:
    """What `cut` takes apart, [n, C, H, W] from windows [places * n, C, h, w]: where they overlap, a mean whose weights
    fall smoothly to the windows' borders."""
    height, width = parts.shape[2:]
    ramps = [torch.sin(math.pi * (torch.arange(side) + 0.5) / side).square() for side in (height, width)]
    weight = (ramps[0][:, None] * ramps[1]).to(parts)
    n = len(parts) // len(places)
    total = parts.new_zeros(n, parts.shape[1] + 1, sides[0] // ratio, sides[1] // ratio)
    for part, (top, left) in zip(parts.split(n), places, strict=True):
        one = torch.cat([part * weight, weight.expand(n, 1, -1, -1)], 1)
        total[..., top // ratio : top // ratio + height, left // ratio : left // ratio + width] += one
    return total[:, :-1] / total[:, -1:]


def measurement(
    task: str,
    given: Mapping[str, Any],
    channels: int,
    sides: Pair,
    window: Pair,
    places: Sequence[Pair],
    lost: float,
) -> Callable[[Sequence[int]], Linear]:
    """The numbers of places -> what is measured of the windows there, of images of these sides. lost: deviation of what
    the model cannot show, which counts as noise. What a window's outside takes part in is not measured: 0."""
    noise = max((given["noise"] or 0.0) / 127.5, ROUNDING)
    if task == "denoise":
        return lambda _: operators.masked(torch.ones(()), math.hypot(noise, lost))
    if task == "colorize":
        return lambda _: operators.gray(math.hypot(noise, lost))
    if task == "jpeg":
        luma, chroma = (torch.from_numpy(table) / 127.5 for table in tables(given["quality"]))
        return lambda _: operators.jpeg(luma, chroma, (channels, *window), ROUNDED, lost)
    scale = given["factor"] or 1
    whole = [operators.bicubic(side, scale) if scale > 1 else operators.gaussian(side, given["blur"]) for side in sides]
    parts: list[list[Tensor]] = [[], []]
    for place in places:
        for axis in (0, 1):
            begin, side = place[axis], window[axis]
            part = whole[axis][begin // scale : (begin + side) // scale, begin : begin + side]
            parts[axis].append(part * (part.sum(1, keepdim=True) - 1).abs().lt(0.01))
    rows, columns = map(torch.stack, parts)
    return lambda numbers: operators.separable(rows[numbers], columns[numbers], math.hypot(noise, lost))


def decoder(model: Generator) -> Callable[[Tensor], Tensor]:
    """Normalised latents [n, C, h, w] -> pixels [n, c, H, W] in about [-1, 1], with gradients."""
    return lambda z: model.autoencoder.decode(model.space.restore(z)).float()


def walk(path: Path, first: float, steps: int) -> Tensor:
    """Times float64 [steps + 1] from the noise level `first` to LAST, equal steps of its seventh root, then 0."""
    levels = torch.linspace(first ** (1 / 7), LAST ** (1 / 7), steps, dtype=torch.float64) ** 7
    return torch.cat([path.at(levels), levels.new_zeros(1)])


def _restored(
    model: Generator,
    y: Tensor,
    task: str,
    given: Mapping[str, Any],
    sides: Pair,
    places: Sequence[Pair],
    request: dict[str, Any],
    rows: range,
    first: int,
) -> Tensor:
    """Pixels [n, C, H, W] of the measured y [n, c, h, w], both in [-1, 1]: `rows` of the request."""
    path, window, n = make_path(**model.options["path"]), model.shapes[0], len(y)
    patch, scale, channels = model.autoencoder.factor, given["factor"] or 1, model.channels

    decode = decoder(model)

    def seen(operator: Linear, part: Tensor, size: Pair) -> Tensor:
        if task == "jpeg":
            return operator.forward(part)
        return part * operator.forward(part.new_ones(1, channels, *size)).gt(0.5)  # 0 where it is not measured

    operator_of = measurement(task, given, channels, sides, window, places, LOST)
    count, size = len(places) * n, request["batch_size"]
    chunks = [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]
    asked, null = model.told(request, rows)
    told = [_rows(asked[0], [row % n for row in range(count)[chunk]]) for chunk in chunks]
    leads, windows = [], cut(y, places, window, scale)
    for chunk, known in zip(chunks, told, strict=True):
        operator = operator_of([row // n for row in range(count)[chunk]])
        lead = model.led(request, [known], null)
        part = seen(operator, windows[chunk], window)
        leads.append(inverse.linearised(lead, path, operators.through(decode, operator), part, SPREAD, SOLVES))

    def whole(x: Tensor, t: Tensor, _: Conditions) -> Tensor:
        parts = cut(x, places, window, patch)
        found = [
            lead(parts[chunk], t[:1].expand(chunk.stop - chunk.start), known)
            for lead, chunk, known in zip(leads, chunks, told, strict=True)
        ]
        return blended(torch.cat(found), places, sides, patch)

    rough = F.interpolate(y, size=sides, mode="bicubic", align_corners=False).expand(-1, channels, -1, -1)
    z = blended(model.encode(_bytes(cut(rough, places, window, 1))).to(y), places, sides, patch)

    def noise(purpose: str) -> Tensor:
        numbers = range(first + rows.start, first + rows.stop)
        return sampling.noise_of(request["seed"], purpose, numbers, z.shape[1:], model.device)

    times = walk(path, FIRST, request["steps"])
    with torch.no_grad():
        x = renoised(path, z, noise("restore"), times[0])
        z = samplers.sample(request["sampler"], whole, path, x, times, {}, lambda step: noise(f"restore/{step}"))
        pixels = torch.cat([decode(part) for part in cut(z, places, window, patch).split(size)])
        found = blended(pixels, places, sides, 1)
    operator = measurement(task, given, channels, sides, sides, [(0, 0)], 0.0)([0])
    y = seen(operator, y, sides)
    if task == "jpeg":  # each coefficient comes within ROUNDED of the file's, the unit here, and no further
        y = y + (operator.forward(found) - y).clamp(-1, 1)
        return inverse.corrected(operator, y, found, ANY**2, LAST_SOLVES)
    left = (SHOWN**2 * wrong(operator, y, found)).clamp(min=LOST**2)
    return inverse.corrected(operator, y, found, left, LAST_SOLVES)


def wrong(operator: Linear, y: Tensor, x: Tensor) -> Tensor:
    """Variance of what is wrong in images x [n, C, H, W], white, as far as the measured y show it, [n, 1, 1, 1]: r^2 of
    E |y - A x|^2 = r^2 tr A A^T + m s^2, m numbers in y. The trace is that of one draw of signs (Hutchinson 1989)."""
    signs = torch.randint(0, 2, y.shape, generator=torch.Generator().manual_seed(0)).to(y) * 2 - 1
    trace = operator.adjoint(signs).square().sum((1, 2, 3), keepdim=True)
    beyond = (y - operator.forward(x)).square() - operator.deviation**2
    return beyond.sum((1, 2, 3), keepdim=True) / trace


def _rows(condition: Conditions, numbers: Sequence[int]) -> Conditions:
    return {name: value[numbers] for name, value in condition.items()}


def _bytes(x: Tensor) -> Images:
    """uint8 [n, H, W, C] of [n, C, H, W] in [-1, 1]."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
