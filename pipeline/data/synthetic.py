"""Data sets that are computed: mixtures of Gaussians in closed form, and shapes with known factors.

Image i is a function of the source's options and of i alone: nothing is stored, any image is made on its own. They
serve tests, tutorials, and the question whether a model finds what is known to be there. Listing and writing them as
shards is done as for any other source (`sources.py`, `stages/ingest.py`).
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.order import Draw, draw_batch

if TYPE_CHECKING:
    from pipeline.schema.data import GaussiansSource, ShapesSource

Array = np.ndarray[Any, np.dtype[Any]]
VERSION = 1  # raise it when an image of the same options changes
KINDS = ("gaussians", "shapes")
SHAPES = ("circle", "square", "triangle")
MEAN, SPREAD = 60.0, 12.0  # grey levels: a mean's largest distance from 127.5, the most deviation of a pixel: 5.6
# deviations lie between them and 0 or 255, so that clipping changes no moment


def factors(source: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """Class names, and what is known of each image: `class` and the numbers that it is made of."""
    drawn = _drawn(source, np.arange(source.count))
    if source.kind == "gaussians":
        names = [f"component {k}" for k in range(source.components)]
        return names, [
            {"class": names[k], **{f"z{j}": round(float(value), 6) for j, value in enumerate(z)}}
            for k, z in zip(drawn["component"], drawn["z"], strict=True)
        ]
    known = [name for name in drawn if name not in ("shape", "image")]
    return list(SHAPES), [
        {"class": SHAPES[shape], **{name: round(drawn[name][i].item(), 6) for name in known}}
        for i, shape in enumerate(drawn["shape"])
    ]


def reader(source: Any) -> Callable[[int], Array]:
    """A function from an image's number to its pixels: uint8 [h, w] (gaussians) or [h, w, 3] (shapes)."""
    if source.kind == "shapes":
        return lambda i: _shape(source, {name: values[0] for name, values in _drawn(source, np.array([i])).items()})
    means, factor = _components(source)

    def image(i: int) -> Array:
        drawn = _drawn(source, np.array([i]))
        k = int(drawn["component"][0])
        pixels = means[k] + factor[k] @ drawn["z"][0].astype(np.float64)
        rounded: Array = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        return rounded.reshape(source.side, source.side)

    return image


def _drawn(source: Any, numbers: Array) -> dict[str, Array]:
    """The random numbers of images `numbers` int64 [n], as the factors that they stand for."""
    if source.kind == "gaussians":
        spec = [Draw("u", "uniform"), Draw("z", "normal", (source.modes**2 - 1,))]
        drawn = draw_batch(source.seed, "data/gaussians", numbers, spec)
        ends = np.cumsum(_weights(source))
        component = np.minimum(np.searchsorted(ends, drawn["u"], side="right"), source.components - 1)
        return {"component": component, "z": drawn["z"]}
    names = ("size", "x", "y", "angle", "hue", "background")
    spec = [Draw("shape", "integer", high=len(SHAPES)), Draw("image", "integer", high=len(source.sizes))]
    drawn = draw_batch(source.seed, "data/shapes", numbers, [*spec, *(Draw(name, "uniform") for name in names)])
    width, height = np.array(source.sizes)[drawn["image"]].T  # [n] each
    radius = (0.15 + 0.2 * drawn["size"]) * np.minimum(width, height)  # pixels
    return {
        **drawn,
        "width": width,
        "height": height,
        "size": radius,
        "x": radius + drawn["x"] * (width - 2 * radius),  # a circle of that radius is inside the image
        "y": radius + drawn["y"] * (height - 2 * radius),
        "angle": 360 * drawn["angle"],  # degrees
    }


# ---- Gaussians -------------------------------------------------------------------------------------------------------


def mixture(source: GaussiansSource) -> tuple[Array, Array, Array]:
    """The distribution in closed form: weights [K], means [K, side^2], covariances [K, side^2, side^2], float64.

    In grey levels of 0 to 255, before pixels are rounded, which adds a variance of about 1/12 to each.
    """
    means, factor = _components(source)
    return _weights(source), means, factor @ factor.transpose(0, 2, 1)


def _weights(source: GaussiansSource) -> Array:
    weights: Array = np.asarray(source.weights or [1.0] * source.components, np.float64)
    share: Array = weights / weights.sum()
    return share


def _components(source: GaussiansSource) -> tuple[Array, Array]:
    """Means [K, d] and factors [K, d, r]: an image of component k is mean_k + factor_k z with z ~ N(0, I)."""
    at = (np.arange(source.side) + 0.5) / source.side
    waves = np.cos(np.pi * np.outer(np.arange(source.modes), at))  # [modes, side]
    planes = (waves[:, None, :, None] * waves[None, :, None, :]).reshape(source.modes**2, -1)[1:]  # [r, d], no constant
    spec = [Draw("mean", "normal", (len(planes),)), Draw("scale", "uniform", (len(planes),))]
    drawn = draw_batch(source.seed, "data/gaussians/components", np.arange(source.components), spec)
    means = drawn["mean"].astype(np.float64) @ planes  # [K, d]
    means *= MEAN / np.abs(means).max(1, keepdims=True)
    factor = planes.T[None] * drawn["scale"][:, None, :]  # [K, d, r]
    factor *= SPREAD / np.sqrt((factor**2).sum(2).max(1))[:, None, None]  # the largest deviation of a pixel
    return 127.5 + means, factor


# ---- shapes ----------------------------------------------------------------------------------------------------------


def _shape(source: ShapesSource, drawn: dict[str, Any]) -> Array:
    """One shape on a plain background, its edge one pixel wide: uint8 [h, w, 3]."""
    rows, columns = np.mgrid[: int(drawn["height"]), : int(drawn["width"])] + 0.5  # centres of the pixels
    angle = np.deg2rad(drawn["angle"])
    x, y = columns - drawn["x"], rows - drawn["y"]
    x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius, name = drawn["size"], SHAPES[int(drawn["shape"])]
    if name == "circle":
        distance = np.hypot(x, y) - radius
    else:  # the circle's inscribed polygon: the largest of the distances from its sides' lines
        sides = {"square": 4, "triangle": 3}[name]
        normals = 2 * np.pi * np.arange(sides) / sides
        lines = [x * np.cos(normal) + y * np.sin(normal) for normal in normals]
        distance = np.max(lines, axis=0) - radius * np.cos(np.pi / sides)
    cover = np.clip(0.5 - distance, 0, 1)[:, :, None]
    colour = np.array(colorsys.hsv_to_rgb(float(drawn["hue"]), 0.8, 0.9))
    background = np.full(3, 0.1 + 0.4 * drawn["background"])
    image: Array = np.rint(255 * (cover * colour + (1 - cover) * background)).astype(np.uint8)
    return image
