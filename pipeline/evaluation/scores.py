"""How good reconstructions and samples are, and whether samples are copies of training images: arrays in, report out.

Every Fréchet distance stands beside the same distance of two sets of real images (half of them training images, half
held out, equally many); what cannot be compared is left out, and the report says why. The measures themselves are in
`metrics/`, what is said of them in `report.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.metrics import sets
from pipeline.past import comparable
from pipeline.schema.section import result_fields
from pipeline.schema.stages import Evaluate

if TYPE_CHECKING:
    from pipeline.data.pictures import Images
    from pipeline.data.split import Array
    from pipeline.data.value_map import ValueMap
    from pipeline.evaluation.metrics.features import Extractor
    from pipeline.evaluation.shapes import Native
    from pipeline.generate.generator import Generator

SHOWN = 64  # samples in the grid
PAIRS = 32  # samples beside their nearest training image in the grids of neighbours


@dataclass
class Report:
    """values: plain JSON values, all figures and what they rest on. images: grids, uint8 [H, W, 3], by name.

    missing: figures that are not given, with the reason. extractor: what made the features. files: others, by name.
    """

    values: dict[str, Any]
    images: dict[str, Images]
    missing: dict[str, str]
    extractor: Extractor = field(repr=False)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)


def evaluate(
    generator: Generator,
    train: Images,
    train_labels: Array,
    held_out: Images,
    held_out_labels: Array,
    config: Evaluate,
    extractor: Extractor,
    mirrored: bool = False,
    native: Native | None = None,
    told: Mapping[str, Any] | None = None,
) -> Report:
    """Measure a generator against real images [n, H, W, C] of its kind, in random order; labels int64 [n], -1: none.

    The first n training images are the half of the real-data baseline, and the extractor (`extractors.py`) must not be
    trained on them: what a network has seen has other features. Samples are asked for in the classes of training
    images, those first, so that a perfect generator's distance is the baseline's. n: equally many images in all sets
    compared. native: where images are of several shapes; the arrays hold squares. told: prompts and attributes of the
    training images, in their order (`generate.told.of_samples`), for a model that knows them.
    """
    from pipeline.evaluation import band_scores, shapes, sound_scores
    from pipeline.generate.sampling import guidance_of
    from pipeline.generate.told import words

    n = min(config.samples, len(held_out), len(train) // 2)
    held_out = held_out[: config.samples]  # as many as samples: of tens of thousands, reconstruction takes its time
    asked = asked_classes(train_labels, config.samples, len(generator.classes)) if generator.classes else None
    samples, sampling, shown = draw_samples(generator, asked, config, native, told)
    if native is None:
        reconstructions = generator.decode(generator.encode(held_out, config.batch_size), config.batch_size)
    else:
        back = shapes.reconstructed(generator, native.held_out, config.batch_size)
        reconstructions = shapes.squares(back, native.side)
    named = {"train": train, "held_out": held_out, "samples": samples, "reconstructions": reconstructions}
    features = {name: extractor(images) for name, images in named.items()}
    values = generator.values

    report = Report({}, {}, {}, extractor)
    report.values = {
        "settings": result_fields(config),
        "model": generator.about,
        "sampling": sampling,
        **({} if native is None else native.told),
        "reconstruction": reconstruction(_pixels(held_out, values), _pixels(reconstructions, values), report)
        if native is None
        else reconstruction(native.held_out, back, report),
        **compare(named, features, n, config, report, guidance_of(sampling)),
        "neighbours": neighbours_of(train, held_out, samples, features, mirrored, report, values),
    }
    if asked is None:
        report.missing["class_accuracy"] = "the model has no class condition"
    else:
        classify(asked, generator.classes, named, features, held_out_labels[: config.samples], report)
    order = np.arange(len(samples)) if asked is None else np.argsort(asked[:SHOWN], kind="stable")
    report.images["samples"] = picture(shown[order[:SHOWN]], values)
    if values is not None and generator.sound is None and train.shape[-1] > 1:
        bands = {name: values.floats_last(images) for name, images in named.items()}
        report.values["band_covariance"] = band_scores.measure(bands.pop("train"), bands)
    if generator.sound is not None:
        report.values["sound"] = sound_scores.measure(generator, held_out, reconstructions)
        report.files = sound_scores.files(generator, shown[spread(order[:SHOWN], sound_scores.HEARD)])
    if told:
        each = words(told, SHOWN)
        report.values["shown"] = [each[i] for i in order[:SHOWN]]
    return report


def compare(
    named: dict[str, Images],
    features: dict[str, Array],
    n: int,
    config: Evaluate,
    report: Report,
    guidance: float | str | None,
) -> dict[str, Any]:
    """The distances between sets of images at n a set, what they rest on, and the verdict; for report.values.

    named, features: `train`, `held_out`, `samples`, and `reconstructions` where there are. guidance: None where nobody
    here knows it.
    """
    extractor, real = report.extractor, named["train"]
    digest = real_digest(named["train"][:n], named["held_out"][:n])
    found, missing = sets.measure(
        features, n, extractor=extractor.digest, real=digest, resamples=config.bootstrap, seed=config.seed
    )
    report.missing.update(missing)
    conditions = {
        "extractor": extractor.digest,
        "images": n,
        "resolution": resolution_of(real),
        "channels": real.shape[3],
    }
    return {
        "images": {**{name: len(images) for name, images in named.items()}, "compared": n},
        "extractor": {key: getattr(extractor, key) for key in ("kind", "digest", "description", "facts")},
        **found,
        "conditions": {**conditions, "real": digest, "guidance": guidance},
        "verdict": comparable.verdict(found["frechet"], found["gap"], extractor.kind),
    }


def resolution_of(images: Images) -> int | str:
    """The side of squares [n, H, W, C], HxW of others."""
    height, width = images.shape[1:3]
    return height if height == width else f"{height}x{width}"


def classify(
    asked: Array,
    names: list[str],
    images: dict[str, Images],
    features: dict[str, Array],
    held_out_labels: Array,
    report: Report,
) -> None:
    """The share of samples that the classifier puts in the class that was asked for, in all and by class."""
    from pipeline.evaluation.metrics import classes

    extractor = report.extractor
    if extractor.logits is None:
        reason = extractor.facts.get("reason")
        report.missing["class_accuracy"] = (
            f"no classifier could be trained, since {reason}"
            if reason
            else f"the extractor {extractor.kind} knows no classes; use kind classifier"
        )
        return
    given, held_out_given = extractor.classify(images["samples"]), extractor.classify(images["held_out"])
    right = given == asked
    report.values["classes"] = {
        "asked": len(asked),
        "right": float(right.mean()),
        "by_class": {str(c): float(right[asked == c].mean()) for c in np.unique(asked)},
        "table": classes.table(
            names, asked, given, features["samples"], held_out_labels, held_out_given, features["held_out"]
        ),
    }


def asked_classes(labels: Array, count: int, classes: int) -> Array:
    """The classes to ask for, int64 [count]: those of the labelled images, from the first on; all in turn if none is
    labelled."""
    known = labels[labels >= 0]
    known = known if len(known) else np.arange(classes)
    asked: Array = known[np.arange(count) % len(known)]
    return asked


LISTS = ("classes", "prompts", "attributes", "maps")  # of a request: a value for each image


def draw_samples(
    generator: Generator,
    asked: Array | None,
    config: Evaluate,
    native: Native | None = None,
    told: Mapping[str, Any] | None = None,
) -> tuple[Images, dict[str, Any], Images]:
    """The samples, what was asked of the generator (without its `LISTS`), and the
    samples as they are shown: the same, but for several shapes, of which the samples are stretched to squares."""
    from pipeline.evaluation import shapes
    from pipeline.generate.class_numbers import Label
    from pipeline.generate.sampling import configured

    begun = time.monotonic()
    how = {"batch_size": config.batch_size, **configured(config)}
    classes = None if asked is None else [Label(c) for c in asked]
    if native is None:
        request = generator.request(classes, config.samples, config.seed, **(told or {}), **how)
        samples = shown = generator.sample(**request)
    else:
        made, request = shapes.samples(generator, classes, native.shapes, how, config.seed, told)
        samples, shown = shapes.squares(made, native.side), shapes.cells(made)
    print(f"evaluate: {len(samples)} samples, {len(samples) / (time.monotonic() - begun):.1f} a second", flush=True)
    return samples, {key: value for key, value in request.items() if key not in LISTS}, shown


def reconstruction(images: Any, reconstructions: Any, report: Report) -> dict[str, float]:
    """images, reconstructions: [n, H, W, C] as `pixel` has them, or a list of [h, w, C] of several shapes."""
    from pipeline.evaluation.metrics import pixel
    from pipeline.evaluation.shapes import pixel_means

    values = {}
    for name, measure_of in (("psnr", pixel.psnr), ("ssim", pixel.ssim)):
        try:
            if isinstance(images, list):
                values[name] = pixel_means(images, reconstructions, measure_of)
            else:
                values[name] = measure_of(images, reconstructions)
        except ValueError as error:
            report.missing[name] = str(error)
    return values


def neighbours_of(
    train: Images,
    held_out: Images,
    samples: Images,
    features: dict[str, Array],
    mirrored: bool,
    report: Report,
    values: ValueMap | None = None,
) -> dict[str, Any]:
    """Distances to the nearest training image, by pixels and by features, and a grid of pairs for each."""
    from pipeline.evaluation.metrics import neighbours

    trained = [train, train[:, :, ::-1]] if mirrored else [train]
    found = {}
    for space in ("pixels", "features"):
        nearest: dict[str, tuple[Array, Array]] = {}
        for side in trained:
            if space == "pixels":
                points = _pixels(side, values).reshape(len(side), -1)
                queries = {
                    "samples": _pixels(samples, values).reshape(len(samples), -1),
                    "held_out": _pixels(held_out, values).reshape(len(held_out), -1),
                }
            else:
                points = features["train"] if side is train else report.extractor(side)
                queries = {name: features[name] for name in ("samples", "held_out")}
            for name, query in queries.items():
                distances, indices = neighbours.nearest(query, points)
                images = side[indices[:PAIRS]] if name == "samples" else side[:0]
                nearest[name] = _nearer(nearest.get(name), (distances, images))
        found[space] = neighbours.nearness(space, nearest["samples"][0], nearest["held_out"][0], len(train)).json()
        if not found[space]["held_out_median"]:
            report.missing[f"nearest_{space}_ratio"] = (
                f"most held-out images are like a training image by their {space}: their median distance is 0"
            )
        # [p, 2, H, W, C] -> [2p, H, W, C]: sample, neighbour, sample, neighbour ...
        pairs = np.stack([samples[:PAIRS], nearest["samples"][1]], axis=1)
        report.images[f"neighbours_{space}"] = picture(pairs.reshape(-1, *samples.shape[1:]), values, columns=8)
    return found


def spread(rows: Array, most: int) -> Array:
    """At most `most` of them, evenly spread."""
    chosen: Array = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]
    return chosen


def _nearer(old: tuple[Array, Array] | None, new: tuple[Array, Array]) -> tuple[Array, Array]:
    """Of two searches the nearer result: distances [n], and images of the first p."""
    if old is None:
        return new
    shown = len(new[1])
    swap = new[0][:shown] < old[0][:shown]
    return np.minimum(old[0], new[0]), np.where(swap[:, None, None, None], new[1], old[1])


def _pixels(images: Images, values: ValueMap | None) -> Array:
    """What pixels are compared by: bytes, or floats of the data's own range, whose bands then weigh alike."""
    return images if values is None else values.floats_last(images)


def picture(images: Images, values: ValueMap | None = None, columns: int | None = None) -> Images:
    from pipeline.data.pictures import grid

    return grid(images if values is None else values.shown(images), columns)


def real_digest(train: Images, held_out: Images) -> str:
    """SHA-256 over the real images that the distances stand on."""
    import hashlib

    total = hashlib.sha256()
    for images in (train, held_out):
        total.update(str(images.shape).encode())
        total.update(np.ascontiguousarray(images).tobytes())
    return total.hexdigest()
