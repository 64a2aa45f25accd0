"""`ldm why`: why a sample looks as it does. Where conditions act, what looks at words, which training images are near.

guidance   the difference that the conditions make in the denoiser's answer, place by place, by noise level along the
           sample's own path (`models/diffusion/effects.py`)
words      the attention of places to a caption's words, a mean over heads, blocks and steps (Tang et al. 2022), and the
           difference that each word makes to the caption without it
nearest    the nearest training images, by pixels and by features, with their lineage (`nearest.py`)

A sample is explained as it is made: the path is walked once more, with the noise of `ldm sample`, and what the denoiser
was asked on it is kept. The maps are made in `why_maps.py`, how they are drawn is `why_pictures.py`, what lies on disk
`why_files.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.diffusion import effects, samplers
from models.diffusion.effects import Call
from models.diffusion.process import make_path
from pipeline.applications import why_maps
from pipeline.applications.edit import check_model
from pipeline.applications.nearest import WAYS, Training, nearest
from pipeline.applications.why_maps import Part, Walk
from pipeline.applications.why_pictures import Cell, sheet
from pipeline.data.pictures import Images
from pipeline.errors import UserError
from pipeline.generate import sampling, told
from pipeline.generate.generator import Generator
from pipeline.generate.prompts import said

Array = np.ndarray[Any, np.dtype[Any]]
SHOWS = ("guidance", "words", "nearest")
LEVELS = (0.95, 0.8, 0.6, 0.4, 0.2)  # shares of noise, sigma / (alpha + sigma), of the steps that are drawn
NEIGHBOURS = 5


@dataclass(frozen=True)
class Why:
    """A sample uint8 [H, W, C] explained: pictures uint8 [h, w, 3] by what they show, figures as plain JSON values.

    maps: over the latents' places, float64: `guidance/together` and, of several conditions, `guidance/each/NAME`
    [steps, h, w] in deviations of the latents; `words/looks` [words, h, w], shares of attention, and `words/changes`,
    a mean over steps.
    """

    image: Images
    pictures: dict[str, Images]
    facts: dict[str, Any]
    maps: dict[str, Array]


def shown(model: Generator, request: Mapping[str, Any], asked: Collection[str] = ()) -> list[str]:
    """What of `SHOWS` is to be shown of a request's samples: what is `asked` for, or all that this model can show.
    UserError for what it cannot."""
    check_model(model, "why", None)
    if told.composes(request):
        raise UserError("why: a prompt of several pieces (AND); explain one piece at a time")
    names, condition = told.of_request(request), model.options["condition"]
    reasons: dict[str, str | None] = {"guidance": None, "words": None, "nearest": None}
    if not told.names(model.options):
        reasons["guidance"] = "this model has no conditions"
    elif not condition.get("drop"):
        reasons["guidance"] = "this model knows no image of which nothing is told (`condition.drop` 0)"
    elif not names:
        reasons["guidance"] = "the samples are told nothing; say what they shall show"
    if not effects.looking(getattr(model.network, "backbone", None)):
        reasons["words"] = "this model does not attend to a caption's tokens"
    elif "caption" not in names:
        reasons["words"] = "the samples are told no caption; give a prompt"
    for show in asked:
        if show not in SHOWS:
            raise UserError(f"show: {show!r} given, expected some of {', '.join(SHOWS)}")
        if reason := reasons[show]:
            raise UserError(f"{show}: {reason}")
    return [show for show in SHOWS if (show in asked if asked else not reasons[show])]


def check_levels(levels: Sequence[float]) -> None:
    """UserError for what are no shares of noise."""
    if not levels or not all(0 < level <= 1 for level in levels):
        raise UserError(f"levels: {', '.join(f'{level:g}' for level in levels) or 'none'} given, expected above 0 to 1")


def why(
    model: Generator,
    request: Mapping[str, Any],
    rows: range,
    shows: Collection[str] = (),
    levels: Sequence[float] = LEVELS,
    training: Training | None = None,
    k: int = NEIGHBOURS,
) -> list[Why]:
    """The samples with the numbers `rows` of a request (of `Generator.request`), explained.

    They are the images that `Generator.sample` gives, up to rounding. shows: some of `SHOWS`, default all that the
    model can. levels: shares of noise; of each the nearest step is drawn, figures are of all steps. training: as
    `nearest.training_of` has it, for the k nearest. Raises UserError for what the model cannot show.
    """
    wanted = shown(model, request, shows or [show for show in shown(model, request) if show != "nearest" or training])
    check_levels(levels)
    walk, names = _walked(model, request, rows), told.of_request(request)
    facts = [{"number": i, "seed": request["seed"], "told": _told(model, request, i)} for i in rows]
    titles = [", ".join(map(_short, one["told"].values())) for one in facts]
    parts: dict[str, list[Part]] = {}
    if "guidance" in wanted:
        parts["guidance"] = why_maps.guidance(model, walk, names, titles, levels)
    if "words" in wanted:
        parts["words"] = why_maps.words(model, walk, request)
    if "nearest" in wanted:
        if training is None:
            raise UserError("nearest: the training images are not given")
        parts["nearest"] = _nearest(walk.images, training, k)
    found = []
    for row, image in enumerate(walk.images):
        own = {show: each[row] for show, each in parts.items()}
        maps = {f"{show}/{name}": values for show, part in own.items() for name, values in part.maps.items()}
        figures = {**facts[row], **{show: part.facts for show, part in own.items()}}
        found.append(Why(image, {show: part.picture for show, part in own.items()}, figures, maps))
    return found


def _told(model: Generator, request: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What a sample is told, for people."""
    own, names = told.of_rows(request, [number]), told.of_request(request)
    found = {"class": model.options["classes"][own["classes"][0]]} if "class" in names else {}
    found |= {name: values[0] for name, values in own.get("attributes", {}).items() if values[0] is not None}
    return {**found, **({"caption": said(own["prompts"][0])} if "caption" in names else {})}


def _walked(model: Generator, request: Mapping[str, Any], rows: range) -> Walk:
    path, factor = make_path(**model.options["path"]), model.autoencoder.factor
    height, width = request.get("shape") or model.shapes[0]
    shape = (model.options["latent"]["channels"], height // factor, width // factor)
    times = sampling.times_of(model.options, request, path, shape[1:])
    asked, null = model.told(request, rows)

    def noise(purpose: str) -> Tensor:
        return sampling.noise_of(request["seed"], purpose, rows, shape, model.device)

    calls: list[Call] = []
    lead = effects.recorded(model.led(request, asked, null), calls)
    with torch.no_grad():
        x = noise("sample") * path.sigma(times[0]).float()
        z = samplers.sample(request["sampler"], lead, path, x, times, asked[0], lambda step: noise(f"sample/{step}"))
    return Walk(rows, model.decode(z), calls, asked[0], null)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else ", ".join(value) if isinstance(value, list) else str(value)


def _nearest(images: Images, training: Training, k: int) -> list[Part]:
    parts = []
    for image, found in zip(images, nearest(training, images, k), strict=True):
        cells: list[list[Cell]] = []
        for way in WAYS:
            near: list[Cell] = [(f"nearest by {way}", image)]
            for one in found[way]:
                named = f"{one['class']} " if "class" in one else ""
                turned = ", mirrored" if one["mirrored"] else ""
                text = f"{one['distance']:.3g}{turned}\n{named}{one['key'][-max(8, 20 - len(named)) :]}"
                near.append((text, training.images[one["place"]]))
            cells.append(near)
        lineage = {way: [{key: v for key, v in one.items() if key != "place"} for one in found[way]] for way in WAYS}
        parts.append(Part(sheet(cells), {**lineage, **training.about}, {}))
    return parts
