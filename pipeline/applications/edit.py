"""`ldm edit`: an image as the model would have it if something else were true of it (a smile, another age).

Two ways. "inversion" walks from the image to noise by what is true of it, and back by what is asked: what does not
hang on the condition comes back as it was (Song, Meng and Ermon 2021; the walk is undone exactly,
`models/diffusion/inversion.py`). "noise" starts from the image under fresh noise (SDEdit, Meng et al. 2022). `strength`
is how far towards noise both go. Where it is said what is true (`was`), guidance leads away from that, instead of from
what is told nothing.

A third, with either: along a direction of the latents (`directions.py`), by any amount, also for what the model was not
told in training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.diffusion import denoiser, guidance, inverse, inversion, operators, samplers
from models.diffusion.guidance import only
from models.diffusion.process import make_path
from pipeline.data.pictures import Images
from pipeline.errors import UserError
from pipeline.generate import sampling, students, told
from pipeline.generate.generator import Generator

METHODS = ("inversion", "noise")
SAMPLER = "ddim"  # the one that inversion undoes
LEVEL = 1 / 3  # noise level sigma / alpha above which a direction is added; below it the details are made


def request_of(model: Generator, of: Mapping[str, Any], n: int, **how: Any) -> dict[str, Any]:
    """A request of n images that are told `of`: attributes by name, `class`, `caption` (several: one an image).
    UserError for what the model does not know."""
    values = {name: value for name, value in of.items() if name not in ("class", "caption")}
    label, caption = of.get("class"), of.get("caption")
    if not of and {**model.defaults, **how}["guidance_kind"] == "classifier_free":
        sampling.check_guidance(how.get("guidance", 1.0))  # what is not used is a number as well
        how["guidance"] = 1.0  # from nothing to nothing: the same answers, at twice the evaluations
    found = model.request(
        None if label is None else [label],
        n,
        prompts=[caption] if isinstance(caption, str) else caption,
        attributes=values or None,
        **how,
    )
    return found if label is not None else {**found, "classes": []}


def check_model(model: Generator, verb: str, untold: str | None) -> None:
    """UserError for a model that cannot change images. untold: the option that would say what is true, if not given."""
    model.pictures_only(f"`ldm {verb}`")
    students.need_means(model.options, verb)
    if untold:
        check_untold(model, verb, untold)


def check_untold(model: Generator, verb: str, option: str, what: str = "image") -> None:
    """UserError for a model that was always told something: what stands for nothing was never trained. option: what
    would tell it."""
    if told.names(model.options) and not model.options["condition"].get("drop"):
        raise UserError(
            f"{verb}: this model knows no {what} of which nothing is told (`condition.drop` 0); say {option}"
        )


def check_sizes(model: Generator, images: Images, mask: np.ndarray[Any, Any] | None = None) -> None:
    """UserError for images [n, H, W, C] that are none of the model's size and channels, and for a mask of another."""
    if images.ndim != 4 or images.shape[1:3] not in model.shapes or images.shape[3] != model.channels:
        height, width = model.shapes[0]
        raise UserError(f"images: {list(images.shape)} given, expected [n, {height}, {width}, {model.channels}]")
    if mask is not None and mask.shape != images.shape[1:3]:
        raise UserError(f"mask: {list(mask.shape)} given, expected {list(images.shape[1:3])}, as the images are")


def check_places(model: Generator, what: str) -> None:
    """UserError for a model whose latents do not lie over the image, a patch of it each."""
    if (sides := len(model.sides[0])) != 2:
        raise UserError(
            f"{what}: needs latents that lie over the image, and those of this model have {sides} side"
            f"{'s' if sides > 1 else ''}; give a model of two"
        )


def requests(
    model: Generator,
    n: int,
    to: Mapping[str, Any],
    was: Mapping[str, Any] | None,
    strength: float,
    method: str,
    seed: int,
    along: bool = False,
    **how: Any,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What `edit` asks the model, and what it says was true, checked; arguments are those of `edit`. along: whether
    there is a direction."""
    if method not in METHODS:
        raise UserError(f"method: {method!r} given, expected {' or '.join(METHODS)}")
    if not 0 < strength <= 1:
        raise UserError(f"strength: {strength:g} given, expected more than 0 and at most 1")
    check_model(model, "edit", None if was else "--was")
    if method == "inversion" and how.setdefault("sampler", SAMPLER) != SAMPLER:
        raise UserError(f"sampler: inversion undoes {SAMPLER} alone; leave it out, or give method noise")
    chosen = {**model.defaults, **how}
    if was and chosen["guidance"] != 1 and chosen["guidance_kind"] == "autoguidance":
        raise UserError("was: autoguidance leads away from a weaker network; give guidance_kind classifier_free")
    request = request_of(model, {**(was or {}), **to}, n, seed=seed, **how)  # what is not asked for stays true
    if not along and not (to and (was or told.of_request(request))):  # an age of nan, a caption of blanks say nothing
        raise UserError("edit: nothing is asked for; say what shall be true, or along what to go")
    if method == "inversion" and request["steps"] < 2:
        raise UserError("steps: 1 given, and the noise of an image takes at least 2")
    if not was:
        return request, None
    before = request_of(model, was, n, guidance=1.0)
    if told.composes(before):
        raise UserError("was: a caption of several pieces (AND); say what is true in one")
    return request, before


def edit(
    model: Generator,
    images: Images,
    to: Mapping[str, Any],
    was: Mapping[str, Any] | None = None,
    strength: float = 0.6,
    method: str = "inversion",
    mask: np.ndarray[Any, Any] | None = None,
    seed: int = 0,
    first: int = 0,
    along: np.ndarray[Any, Any] | None = None,
    **how: Any,
) -> Images:
    """Edits uint8 [n, H, W, C] of images [n, H, W, C] at the model's size.

    to: what shall be true, by name (an attribute, `class`, `caption`, or a list of captions, one an image); was: what
    is. strength: in (0, 1], the share of the steps that is walked. mask: float [H, W] of 1 where the images may change;
    elsewhere they stay as they are. first: number of the first image, by which fresh noise is drawn. along: a direction
    float32 [C, *sides], as often as it is to be gone. how: steps, guidance and the like, as `Generator.sample` has
    them. Raises UserError for values the model does not know.
    """
    request, before = requests(model, len(images), to, was, strength, method, seed, along is not None, **how)
    check_sizes(model, images, mask)
    if mask is not None:
        check_places(model, "mask")
    made = []
    for begin in range(0, len(images), request["batch_size"]):
        rows = range(begin, min(begin + request["batch_size"], len(images)))
        part, numbers = images[rows.start : rows.stop], range(first + rows.start, first + rows.stop)
        z = _edited(model, part, request, before, rows, numbers, strength, method, mask, along)
        made.append(model.decode(z))
    found = np.concatenate(made)
    if mask is None:
        return found
    blend = mask[None, :, :, None] * found + (1 - mask[None, :, :, None]) * images
    return np.rint(blend).astype(np.uint8)


def _edited(
    model: Generator,
    images: Images,
    request: dict[str, Any],
    before: dict[str, Any] | None,
    rows: range,
    numbers: range,
    strength: float,
    method: str,
    mask: np.ndarray[Any, Any] | None,
    along: np.ndarray[Any, Any] | None,
) -> Tensor:
    """Normalised latents [n, C, *sides] of the edits of images: `rows` of the requests, of the given `numbers`."""
    path = make_path(**model.options["path"])
    z = model.encode(images).to(model.device)
    times = sampling.times_of(model.options, request, path, z.shape[2:])
    walk = times[len(times) - 1 - max(1, round(strength * request["steps"])) :]
    asked, null = model.told(request, rows)
    true = only(asked[0], (), null)
    if before:
        (true, *_), _ = model.told(before, rows)
    lead = model.led(request, asked, true)
    if along is not None:
        step = guidance.along(lead, torch.from_numpy(along).to(z))
        lead = guidance.within(step, lead, path, LEVEL, math.inf)

    def noise(purpose: str) -> Tensor:
        return sampling.noise_of(request["seed"], purpose, numbers, z.shape[1:], model.device)

    if mask is not None:
        known = operators.latent_mask(1 - torch.from_numpy(mask)[None, None].to(z), model.autoencoder.factor)
        lead = inverse.pseudo_inverse(lead, path, operators.masked(known, 0.0), known * z)
    with torch.no_grad():
        if method == "inversion":
            plain = denoiser.denoiser(model.network, path, model.options["prediction"])
            x = inversion.exact_inverse(plain, path, z, walk, true)
        else:
            x = inversion.renoised(path, z, noise("edit"), walk[0])
        return samplers.sample(request["sampler"], lead, path, x, walk, asked[0], lambda step: noise(f"edit/{step}"))
