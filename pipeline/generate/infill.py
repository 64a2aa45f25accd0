"""What is missing of a text, written to fit (`ldm inpaint --text`); also how it goes on.

Known tokens come back as they were. Each answer of the denoiser is pulled to latents that say them
(`models/diffusion/known_tokens.py`), so that what is written between is of one piece with them. A gap is so many
tokens, since the latents are those of a whole passage, each of a few places of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from models.diffusion import known_tokens, samplers
from models.diffusion.process import make_path
from pipeline.data import tokens
from pipeline.data.captions import cleaned
from pipeline.errors import UserError
from pipeline.generate import sampling, students
from pipeline.generate.generator import Generator

GAP = re.compile(r"_{3,}")
HOW: dict[str, Any] = {"sampler": "ddpm", "steps": 40, "batch_size": 4}
TOKENS = 4  # of a gap

Array = np.ndarray[Any, np.dtype[Any]]


class Given(NamedTuple):
    """Tokens int64 [L] with END in gaps, and bool [L]: which are known, and which are in gaps that have something
    behind them, where a text cannot end. What is in none of both follows an end, or may be one."""

    tokens: Array
    known: Array
    inner: Array


def parsed(model: Generator, text: str, gap: int = TOKENS) -> Given:
    """A text with ___ in place of what is missing, `gap` tokens each; one at the end goes on as long as the model does.
    UserError for a text without a gap, or one that is too long, and for a model that does not fill gaps."""
    if model.tokenizer is None:
        raise UserError("text: this model is of images; give it pictures, and --mask")
    students.need_means(model.options, "text")
    first, *rest = GAP.split(cleaned(text))
    if not rest:
        raise UserError("text: nothing is missing; write ___ where something is to be written")
    parts = [first, *rest]
    last = len(parts) - 1
    ids = model.tokenizer.ids([part.rstrip() if i < last else part for i, part in enumerate(parts)])
    closed, length = bool(ids[last]), model.autoencoder.length
    size = sum(map(len, ids)) + gap * (last - (not closed))  # the last one is as long as there is room
    if size + (not closed) > length:
        raise UserError(f"text: {size} tokens with its gaps, and the model's passages have {length}; give less")
    row, known = list(ids[0]), [True] * len(ids[0])
    for i, part in enumerate(ids[1:], 1):
        width = gap if i < last or closed else 0
        row, known = row + [tokens.END] * width + part, known + [False] * width + [True] * len(part)
    filled = np.zeros((3, length), np.int64)
    filled[0, : len(row)], filled[1, : len(row)] = row, known
    filled[2, : len(row)] = [not each for each in known]
    filled[1, len(row) : len(row) + 1] = closed  # the END behind it
    return Given(filled[0], filled[1].astype(bool), filled[2].astype(bool))


def infill(model: Generator, given: Given, request: Mapping[str, Any]) -> list[str]:
    """Texts [n] of a request (`Generator.request`, with `HOW`), in which the known tokens are as they were."""
    return tokens.texts(model.tokenizer, written(model, [given] * request["n"], request))  # type: ignore[arg-type]


def written(model: Generator, given: list[Given], request: Mapping[str, Any]) -> Array:
    """Tokens int64 [n, L], a row for each of `given`; row i is a function of it, of seed and i."""
    path = make_path(**model.options["path"])
    sides, size, device = model.sides[0], request["batch_size"], model.device
    times = sampling.times_of(model.options, request, path, sides)
    shape = (model.options["latent"]["channels"], *sides)
    found = []
    for start in range(0, len(given), size):
        rows = range(start, start + size)
        some = [given[min(i, len(given) - 1)] for i in rows]  # a batch is always whole, as elsewhere
        row, known, inner = (torch.from_numpy(np.stack(each)).to(device) for each in zip(*some, strict=True))
        conditions, null = model.told(dict(request), rows)
        led = model.led(dict(request), conditions, null)

        def near(x0: torch.Tensor, row: Any = row, known: Any = known) -> Callable[[torch.Tensor], torch.Tensor]:
            said = model.autoencoder.said(model.space.restore(x0), row, known)
            return lambda latents: model.autoencoder.decode(model.space.restore(latents), said)

        denoise = known_tokens.held(led, path, near, row, known)

        def noise(purpose: str, rows: range = rows) -> torch.Tensor:
            return sampling.noise_of(request["seed"], purpose, rows, shape, device)

        x = noise("infill") * path.sigma(times[0]).float()
        with torch.no_grad():
            walk = (request["sampler"], denoise, path, x, times, conditions[0], lambda step: noise(f"infill/{step}"))
            z = samplers.sample(*walk)
            logits, sound = model.raw(z, model.autoencoder.said(model.space.restore(z), row, known))
        if not sound.all():
            raise UserError("text: the answers are not finite; give less guidance, or more steps")
        logits[..., tokens.END] = torch.where(inner, -torch.inf, logits[..., tokens.END])
        found.append(torch.where(known, row, logits.argmax(-1)).cpu().numpy())
    return np.concatenate(found)[: len(given)]
