"""`ldm why`: why a sample looks as it does. Where conditions act, what looks at words, which training images are near.

guidance   the difference that the conditions make in the denoiser's answer, place by place, by noise level along the
           sample's own path (`models/diffusion/effects.py`)
words      the attention of places to a caption's words, a mean over heads, blocks and steps (Tang et al. 2022)
nearest    the nearest training images, by pixels and by features, with their lineage (`nearest.py`)

A sample is explained as it is made: the path is walked once more, with the noise of `ldm sample`, and what the denoiser
was asked on it is kept. How it is drawn is in `why_pictures.py`, what lies on disk in `jobs/why.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.conditioning import Conditions
from models.diffusion import denoiser, effects, samplers
from models.diffusion.effects import Call
from models.diffusion.process import Path, make_path
from pipeline.applications.edit import check_model
from pipeline.applications.nearest import WAYS, Training, nearest
from pipeline.applications.why_pictures import Cell, heat, sheet
from pipeline.data.pictures import Images
from pipeline.errors import UserError
from pipeline.generate import sampling, told
from pipeline.generate.generator import Generator
from pipeline.generate.prompts import pieces, said
from pipeline.generate.words import Word, words_of

Array = np.ndarray[Any, np.dtype[Any]]
SHOWS = ("guidance", "words", "nearest")
LEVELS = (0.95, 0.8, 0.6, 0.4, 0.2)  # shares of noise, sigma / (alpha + sigma), of the steps that are drawn
NEIGHBOURS = 5
COLUMNS = 8  # cells of a row of words


@dataclass(frozen=True)
class Why:
    """A sample uint8 [H, W, C] explained: pictures uint8 [h, w, 3] by what they show, figures as plain JSON values.

    maps: over the latents' places, float64: `guidance/together` and, of several conditions, `guidance/each/NAME`
    [steps, h, w] in deviations of the latents; `words` [words, h, w], shares of attention.
    """

    image: Images
    pictures: dict[str, Images]
    facts: dict[str, Any]
    maps: dict[str, Array]


def conditions_of(request: Mapping[str, Any]) -> list[str]:
    """The conditions that a request tells anything of, by name."""
    names = ["class"] if request.get("classes") else []
    names += [name for name, values in request.get("attributes", {}).items() if any(v is not None for v in values)]
    names += ["caption"] if any(said(prompt) for prompt in request.get("prompts", [])) else []
    return [*names, *(name for name, values in request.get("maps", {}).items() if any(v is not None for v in values))]


def shown(model: Generator, request: Mapping[str, Any], asked: Collection[str] = ()) -> list[str]:
    """What of `SHOWS` is to be shown of a request's samples: what is `asked` for, or all that this model can show.
    UserError for what it cannot."""
    check_model(model, "why", None)
    if told.composes(request):
        raise UserError("why: a prompt of several pieces (AND); explain one piece at a time")
    names, condition = conditions_of(request), model.options["condition"]
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
    images, calls, condition, null = _walked(model, request, rows)
    names = conditions_of(request)
    facts: list[dict[str, Any]] = [
        {"number": i, "seed": request["seed"], "told": _told(model, request, i)} for i in rows
    ]
    found = [Why(image, {}, one, {}) for image, one in zip(images, facts, strict=True)]
    if "guidance" in wanted:
        _guidance(model, found, calls, condition, null, names, levels)
    if "words" in wanted:
        texts = [pieces(told.of_rows(request, [i])["prompts"][0])[0] for i in rows]
        _words(model, found, calls, condition, texts)
    if "nearest" in wanted:
        if training is None:
            raise UserError("nearest: the training images are not given")
        _nearest(found, training, k)
    return found


def _told(model: Generator, request: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What a sample is told, for people."""
    own, names = told.of_rows(request, [number]), conditions_of(request)
    found = {"class": model.options["classes"][own["classes"][0]]} if "class" in names else {}
    found |= {name: values[0] for name, values in own.get("attributes", {}).items() if values[0] is not None}
    return {**found, **({"caption": said(own["prompts"][0])} if "caption" in names else {})}


def _walked(
    model: Generator, request: Mapping[str, Any], rows: range
) -> tuple[Images, list[Call], Conditions, Conditions]:
    """The samples, what the denoiser was asked and has answered on the way, what they were told, and the null."""
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
    return model.decode(z), calls, asked[0], null


def share_of_noise(path: Path, t: Tensor) -> float:
    """sigma / (alpha + sigma) of a time: 0 at the data, 1 where nothing of them is left."""
    alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
    return sigma / (alpha + sigma)


# ---- guidance --------------------------------------------------------------------------------------------------------


def _guidance(
    model: Generator,
    samples: Sequence[Why],
    calls: Sequence[Call],
    condition: Conditions,
    null: Conditions,
    names: Sequence[str],
    levels: Sequence[float],
) -> None:
    path = make_path(**model.options["path"])
    plain = denoiser.denoiser(model.network, path, model.options["prediction"])
    at = [share_of_noise(path, call.t[0].double()) for call in calls]
    with torch.no_grad():
        found = [effects.effects(plain, call.x, call.t, condition, null, names) for call in calls]
    chosen = sorted({int(np.abs(np.asarray(at) - level).argmin()) for level in levels})
    maps = {"together": torch.stack([one.together for one in found])}  # [steps, n, h, w]
    maps |= {f"each/{name}": torch.stack([one.each[name] for one in found]) for name in found[0].each}
    estimates = [model.decode(calls[i].x0) for i in chosen]
    for row, sample in enumerate(samples):
        image = sample.image
        own = {name: values[:, row].cpu().double().numpy() for name, values in maps.items()}  # [steps, h, w]
        sizes = {name: np.sqrt(np.square(values).mean((1, 2))) for name, values in own.items()}  # [steps]
        shares = {name: size / (size.sum() or 1.0) for name, size in sizes.items()}
        figures = {name: {"difference": sizes[name].tolist(), "share": shares[name].tolist()} for name in own}
        of_each = {name: figures[f"each/{name}"] for name in found[0].each}
        sample.facts["guidance"] = {"levels": at, "together": figures["together"], "each": of_each}
        cells: list[list[Cell]] = [[(", ".join(map(_short, sample.facts["told"].values())), image)]]
        cells[0] += [(f"noise {at[i]:.2f}", estimates[place][row]) for place, i in enumerate(chosen)]
        for name, values in own.items():
            title = names[0] if len(names) == 1 else "all told" if name == "together" else name.partition("/")[2]
            line: list[Cell] = [(f"{title}\nall steps", heat(image, values.mean(0)))]
            line += [(f"{sizes[name][i]:.2g}\n{shares[name][i]:.0%}", heat(image, values[i])) for i in chosen]
            cells.append(line)
        sample.pictures["guidance"] = sheet(cells)
        sample.maps.update({f"guidance/{name}": values for name, values in own.items()})


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else ", ".join(value) if isinstance(value, list) else str(value)


# ---- words -----------------------------------------------------------------------------------------------------------


def _words(
    model: Generator, samples: Sequence[Why], calls: Sequence[Call], condition: Conditions, texts: Sequence[str]
) -> None:
    path = make_path(**model.options["path"])
    words = [words_of(model.options, text, model.device) for text in texts]
    with torch.no_grad():
        looks = sum(effects.attention(model.network, path, call.x, call.t, condition) for call in calls) / len(calls)
    for row, sample in enumerate(samples):
        image = sample.image
        tokens = torch.as_tensor(looks)[row].cpu().double().numpy()  # [S, h, w]
        maps = [(word, tokens[word.tokens].sum(0)) for word in words[row]]
        rest = float(tokens.sum(0).mean() - sum(values.mean() for _, values in maps))
        sample.facts["words"] = {"of": [_word(word, values) for word, values in maps], "rest": rest}
        cells: list[Cell] = [("", image)]
        cells += [(f"{word.text}\n{values.mean():.1%}", heat(image, values, values.min())) for word, values in maps]
        sample.pictures["words"] = sheet([cells[at : at + COLUMNS] for at in range(0, len(cells), COLUMNS)])
        sample.maps["words"] = np.stack([values for _, values in maps]) if maps else np.empty((0, *tokens.shape[1:]))


def _word(word: Word, values: Array) -> dict[str, Any]:
    """attention: its share, a mean over places; most: at one place; down, right: the middle of what exceeds the least
    of all places, in shares of the sides."""
    over = values - values.min()
    total = float(over.sum()) or 1.0
    middle = [
        float((over.sum(1 - axis) * (np.arange(size) + 0.5)).sum() / total / size)
        for axis, size in enumerate(values.shape)
    ]
    facts = {"attention": float(values.mean()), "most": float(values.max()), "down": middle[0], "right": middle[1]}
    return {"word": word.text, **facts}


# ---- nearest ---------------------------------------------------------------------------------------------------------


def _nearest(samples: Sequence[Why], training: Training, k: int) -> None:
    images = np.stack([sample.image for sample in samples])
    for sample, found in zip(samples, nearest(training, images, k), strict=True):
        cells: list[list[Cell]] = []
        for way in WAYS:
            near: list[Cell] = [(f"nearest by {way}", sample.image)]
            for one in found[way]:
                named = f"{one['class']} " if "class" in one else ""
                turned = ", mirrored" if one["mirrored"] else ""
                text = f"{one['distance']:.3g}{turned}\n{named}{one['key'][-max(8, 20 - len(named)) :]}"
                near.append((text, training.images[one["place"]]))
            cells.append(near)
        told_of = {way: [{key: v for key, v in one.items() if key != "place"} for one in found[way]] for way in WAYS}
        sample.facts["nearest"] = {**told_of, **training.about}
        sample.pictures["nearest"] = sheet(cells)
