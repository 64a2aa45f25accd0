"""The maps of `ldm why`: where conditions act by noise level, which places look at which word, what a word changes.

What is computed at one step is `models/diffusion/effects.py`; which samples, and along which path, is `why.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.conditioning import Conditions
from models.diffusion import denoiser, effects
from models.diffusion.effects import Call
from models.diffusion.process import Path, make_path
from pipeline.applications.why_pictures import Cell, heat, sheet
from pipeline.data.pictures import Images
from pipeline.generate import told
from pipeline.generate.generator import Generator
from pipeline.generate.prompts import kept, pieces
from pipeline.generate.words import Word, words_of

Array = np.ndarray[Any, np.dtype[Any]]
COLUMNS = 8  # cells of a row of words


class Part(NamedTuple):
    """What explains a sample in one way: a picture uint8 [h, w, 3], figures as plain JSON values, maps by name."""

    picture: Images
    facts: dict[str, Any]
    maps: dict[str, Array]


class Walk(NamedTuple):
    """Samples uint8 [n, H, W, C] with the numbers `rows` of a request, what the denoiser was asked and has answered on
    their path, what they were told, and the null."""

    rows: range
    images: Images
    calls: list[Call]
    condition: Conditions
    null: Conditions


def share_of_noise(path: Path, t: Tensor) -> float:
    """sigma / (alpha + sigma) of a time: 0 at the data, 1 where nothing of them is left."""
    alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
    return sigma / (alpha + sigma)


# ---- guidance --------------------------------------------------------------------------------------------------------


def guidance(model: Generator, walk: Walk, names: Sequence[str], titles: Sequence[str], levels: Any) -> list[Part]:
    """Of each sample what the conditions `names` change, together and each by itself. Maps [steps, h, w]: `together`
    and, of several, `each/NAME`. titles: what stands above the samples; levels: of the steps that are drawn."""
    path = make_path(**model.options["path"])
    plain = denoiser.denoiser(model.network, path, model.options["prediction"])
    at = [share_of_noise(path, call.t[0].double()) for call in walk.calls]
    with torch.no_grad():
        found = [effects.effects(plain, c.x, c.t, walk.condition, walk.null, names) for c in walk.calls]
    chosen = sorted({int(np.abs(np.asarray(at) - level).argmin()) for level in levels})
    maps = {"together": torch.stack([one.together for one in found])}  # [steps, n, h, w]
    maps |= {f"each/{name}": torch.stack([one.each[name] for one in found]) for name in found[0].each}
    estimates = [model.decode(walk.calls[i].x0) for i in chosen]
    parts = []
    for row, image in enumerate(walk.images):
        own = {name: values[:, row].cpu().double().numpy() for name, values in maps.items()}  # [steps, h, w]
        sizes = {name: np.sqrt(np.square(values).mean((1, 2))) for name, values in own.items()}  # [steps]
        shares = {name: size / (size.sum() or 1.0) for name, size in sizes.items()}
        figures = {name: {"difference": sizes[name].tolist(), "share": shares[name].tolist()} for name in own}
        of_each = {name: figures[f"each/{name}"] for name in found[0].each}
        cells: list[list[Cell]] = [[(titles[row], image)]]
        cells[0] += [(f"noise {at[i]:.2f}", estimates[place][row]) for place, i in enumerate(chosen)]
        for name, values in own.items():
            title = names[0] if len(names) == 1 else "all told" if name == "together" else name.partition("/")[2]
            line: list[Cell] = [(f"{title}\nall steps", heat(image, values.mean(0)))]
            line += [(f"{sizes[name][i]:.2g}\n{shares[name][i]:.0%}", heat(image, values[i])) for i in chosen]
            cells.append(line)
        facts = {"levels": at, "together": figures["together"], "each": of_each}
        parts.append(Part(sheet(cells), facts, own))
    return parts


# ---- words -----------------------------------------------------------------------------------------------------------


def words(model: Generator, walk: Walk, request: Mapping[str, Any]) -> list[Part]:
    """Of each sample the words of its caption: what looks at them, and what they change. Maps [words, h, w]: `looks`,
    shares of attention, and `changes`, both means over steps."""
    path = make_path(**model.options["path"])
    with torch.no_grad():
        seen = [effects.attention(model.network, path, call.x, call.t, walk.condition) for call in walk.calls]
    attention = torch.stack(seen).mean(0).cpu().double().numpy()  # [n, S, h, w]
    parts = []
    for row, (number, image) in enumerate(zip(walk.rows, walk.images, strict=True)):
        own = told.of_rows(request, [number])
        found = words_of(model.options, pieces(own["prompts"][0])[0], model.device)
        looks = np.empty((len(found), *attention.shape[2:]))
        for place, word in enumerate(found):
            looks[place] = attention[row, word.tokens].sum(0)
        changes = _changes(model, walk, row, own, [word.without for word in found])
        of = [_word(*one) for one in zip(found, looks, changes, strict=True)]
        rest = float(attention[row].sum(0).mean() - looks.mean((1, 2)).sum())
        picture = _strip(image, of, looks, changes)
        parts.append(Part(picture, {"of": of, "rest": rest}, {"looks": looks, "changes": changes}))
    return parts


def _changes(model: Generator, walk: Walk, row: int, own: Mapping[str, Any], others: Sequence[str]) -> Array:
    """What the answers to a sample, `row` of the walk, would change if its caption were one of `others`, a mean over
    steps, [others, h, w], in deviations of the latents. own: the sample's part of the request."""
    k, path = len(others), make_path(**model.options["path"])
    total = torch.zeros((k, *walk.calls[0].x.shape[2:]), dtype=torch.float64)
    if not k:
        return total.numpy()
    plain = denoiser.denoiser(model.network, path, model.options["prediction"])
    (left,), _ = model.told({**own, "prompts": [kept([text]) for text in others]}, range(k))

    def again(value: Tensor) -> Tensor:
        return value[row : row + 1].expand(k, *value.shape[1:]).contiguous()

    whole = {name: again(value) for name, value in walk.condition.items()}
    with torch.no_grad():
        for call in walk.calls:
            x, t = again(call.x), again(call.t)
            total += effects.apart(plain(x, t, whole), plain(x, t, left)).cpu()
    return (total / len(walk.calls)).numpy()


def _word(word: Word, looks: Array, changes: Array) -> dict[str, Any]:
    """attention: a word's share, a mean over places; difference: what its absence changes, a root mean square."""
    return {
        "word": word.text,
        "looks": {"attention": float(looks.mean()), "most": float(looks.max()), **_middle(looks - looks.min())},
        "changes": {"difference": float(np.sqrt(np.square(changes).mean())), **_middle(changes)},
    }


def _middle(values: Array) -> dict[str, float]:
    """The middle of a map [h, w], weighted by its values, in shares of the sides; of one of zeros the image's."""
    weights = values if values.any() else np.ones_like(values)
    down, right = ((np.arange(size) + 0.5) / size for size in values.shape)
    total = weights.sum()
    return {"down": float(down @ weights.sum(1) / total), "right": float(right @ weights.sum(0) / total)}


def _strip(image: Images, of: Sequence[Mapping[str, Any]], looks: Array, changes: Array) -> Images:
    """The image, then of each word what looks at it, and below what it changes."""
    cells: list[list[Cell]] = [[("above: looks\nbelow: changes", image)], [("", None)]]
    for one, look, change in zip(of, looks, changes, strict=True):
        cells[0].append((f"{one['word']}\n{one['looks']['attention']:.1%}", heat(image, look, look.min())))
        cells[1].append((f"{one['changes']['difference']:.2g}", heat(image, change)))
    return sheet([line[at : at + COLUMNS] for at in range(0, len(cells[0]), COLUMNS) for line in cells])
