"""`ldm compose`: two images made one. A strip between them, a collage by a mask, the content of one in the look of the
other. Of a model of text, a strip between two texts.

The strip walks both to noise and samples along the sphere between the two noises; the walk is undone exactly
(`models/diffusion/inversion.py`), so its ends are the two images as the autoencoder has them. The collage is pasted in
pixels, put under fresh noise and sampled down, so that the border is made anew (SDEdit, Meng et al. 2022). The look
gives the latents of one image the statistics of the other's (`models/diffusion/blends.py`), noised and sampled as well.
`strength` is how far towards noise the latter two go. What is told (`to`) holds for both images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.diffusion import blends, denoiser, inversion, samplers
from models.diffusion.process import make_path
from pipeline.applications.edit import SAMPLER, check_model, check_sizes, check_untold, request_of
from pipeline.data.captions import cleaned
from pipeline.data.pictures import Images
from pipeline.errors import UserError, many
from pipeline.generate import sampling, students
from pipeline.generate.generator import Generator

STRENGTH = 0.25  # of faces at 64 pixels, as looked at: much less leaves the border of a collage, much more the face
NOTABLE = 5.0  # gray levels between an end of a strip and its image: rounding leaves less than 1
LEAST = 3  # images of a strip: two are its ends alone


def between(model: Generator, a: Images, b: Images, n: int, to: Mapping[str, Any] | None = None, **how: Any) -> Images:
    """A strip uint8 [n, H, W, C] from image a [H, W, C] to b at the model's size; both ends are round trips.

    to: what is true of both, by name (an attribute, `class`, `caption`). how: steps and the like, as `Generator.sample`
    has them, without guidance: both ways are walked without. Raises UserError for values the model does not know.
    """
    request = strip_request(model, n, to, **how)
    check_both(model, a, b)
    return model.decode(_strip(model, model.encode(np.stack([a, b])), request))


def between_texts(
    model: Generator, a: str, b: str, n: int, to: Mapping[str, Any] | None = None, **how: Any
) -> list[str]:
    """n texts from a to b, both as the autoencoder says them. Arguments are those of `between`. Raises UserError, also
    for a text that is longer than the model's passages."""
    request = strip_request(model, n, to, "text", **how)
    texts, length = [cleaned(text) for text in (a, b)], model.autoencoder.length
    for text, ids in zip(texts, model.tokenizer.ids(texts), strict=True):  # type: ignore[union-attr]
        if not 0 < len(ids) <= length:
            raise UserError(f"text: {text[:40]!r} is of {many(len(ids), 'token')}, expected 1 to {length}")
    return model.decode_texts(_strip(model, model.encode_texts(texts), request))


def _strip(model: Generator, z: Tensor, request: dict[str, Any]) -> Tensor:
    """Normalised latents [n, C, *sides] from one of z [2, C, *sides] to the other, of a `strip_request`."""
    path, n = make_path(**model.options["path"]), request["n"]
    z = z.to(model.device)
    times = sampling.times_of(model.options, request, path, z.shape[2:])
    plain = denoiser.denoiser(model.network, path, model.options["prediction"])
    with torch.no_grad():
        (true, *_), _ = model.told(request, range(2))
        noises = inversion.exact_inverse(plain, path, z, times, true)
        x = blends.slerp(noises[:1], noises[1:], torch.linspace(0, 1, n))
        made = []
        for rows in np.array_split(np.arange(n), -(-n // request["batch_size"])):
            (true, *_), _ = model.told(request, rows.tolist())
            made.append(samplers.ddim(plain, path, x[rows], times, true))
    return torch.cat(made)


def apart(model: Generator, a: Images, b: Images, strip: Images) -> list[float]:
    """How far both ends of a strip are from what the autoencoder makes of a and b, in gray levels (root mean square).

    A step of `inversion.exact_inverse` that does not converge would leave another image there.
    """
    plain = model.decode(model.encode(np.stack([a, b]))).astype(np.float64)
    return [float(np.sqrt(np.square(end - one).mean())) for end, one in zip(strip[[0, -1]], plain, strict=True)]


def strip_request(
    model: Generator, n: int, to: Mapping[str, Any] | None, what: str = "image", **how: Any
) -> dict[str, Any]:
    """What `between` asks the model, checked, or `between_texts` (what: "text"); arguments are theirs."""
    if what == "image":
        check_model(model, "compose", None if to else "--set")
    elif model.tokenizer is None:
        raise UserError("text: this model is of images; give it two pictures")
    else:
        students.need_means(model.options, "compose")
        if not to:
            check_untold(model, "compose", "--set", "text")
    if n < LEAST:
        raise UserError(f"between: {many(n, what)} given, expected at least {LEAST}: both ends, and one between")
    if how.setdefault("guidance", 1.0) != 1:
        raise UserError("guidance: a strip leads back as it came, without; leave it out")
    if how.setdefault("sampler", SAMPLER) != SAMPLER:
        raise UserError(f"sampler: inversion undoes {SAMPLER} alone; leave it out")
    request = request_of(model, to or {}, n, **how)
    if request["steps"] < 2:
        raise UserError("steps: 1 given, and the noise of an image takes at least 2")
    return request


def collage(
    model: Generator,
    a: Images,
    b: Images,
    mask: np.ndarray[Any, Any],
    to: Mapping[str, Any] | None = None,
    strength: float = STRENGTH,
    seed: int = 0,
    **how: Any,
) -> Images:
    """uint8 [H, W, C]: image a [H, W, C] where mask [H, W] is 0 and b where it is 1, made one by the model.

    strength: in (0, 1], the share of the steps that is walked; less keeps more of both. to, how: as of `between`, with
    guidance. Raises UserError.
    """
    request = noised_request(model, to, strength, seed, **how)
    check_both(model, a, b, mask)
    pasted = np.where(mask[:, :, None] > 0, b, a)
    return _sampled(model, model.encode(pasted[None]).to(model.device), request, strength)


def look(
    model: Generator,
    a: Images,
    b: Images,
    to: Mapping[str, Any] | None = None,
    strength: float = STRENGTH,
    seed: int = 0,
    **how: Any,
) -> Images:
    """uint8 [H, W, C]: what is on image a [H, W, C], in the colours and contrast of b. Arguments are those of
    `collage`. Raises UserError."""
    request = noised_request(model, to, strength, seed, **how)
    check_both(model, a, b)
    z = model.encode(np.stack([a, b])).to(model.device)
    return _sampled(model, blends.adain(z[:1], z[1:]), request, strength)


def check_both(model: Generator, a: Images, b: Images, mask: np.ndarray[Any, Any] | None = None) -> None:
    """UserError for images [H, W, C] or a mask [H, W] that are not of the model's size."""
    for image in (a, b):
        check_sizes(model, image[None], mask)


def noised_request(
    model: Generator, to: Mapping[str, Any] | None, strength: float, seed: int, **how: Any
) -> dict[str, Any]:
    """What `collage` and `look` ask the model, checked; arguments are theirs."""
    check_model(model, "compose", None if to else "--set")
    if not 0 < strength <= 1:
        raise UserError(f"strength: {strength:g} given, expected more than 0 and at most 1")
    return request_of(model, to or {}, 1, seed=seed, **how)


def _sampled(model: Generator, z: Tensor, request: dict[str, Any], strength: float) -> Images:
    """Latents [1, C, *sides] under fresh noise, sampled down: an image uint8 [H, W, C]."""
    path = make_path(**model.options["path"])
    times = sampling.times_of(model.options, request, path, z.shape[2:])
    walk = times[len(times) - 1 - max(1, round(strength * request["steps"])) :]
    asked, null = model.told(request, range(1))
    lead = model.led(request, asked, null)

    def noise(purpose: str) -> Tensor:
        return sampling.noise_of(request["seed"], purpose, range(1), z.shape[1:], model.device)

    with torch.no_grad():
        x = inversion.renoised(path, z, noise("compose"), walk[0])
        z = samplers.sample(request["sampler"], lead, path, x, walk, asked[0], lambda step: noise(f"compose/{step}"))
    made: Images = model.decode(z)[0]
    return made
