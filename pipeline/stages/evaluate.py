"""Stage 5, evaluate: how good reconstructions and samples are, and whether samples are copies of training images.

`evaluate` is the core: arrays in, report out. Every Fréchet distance stands beside the same distance of two sets of
real images (half of them training images, half held out, equally many); what cannot be compared is left out, and the
report says why. The measures themselves are in `metrics/`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts import Artifact, Writer
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import atomic_write, sha256_file, write_json
from pipeline.metrics import comparable, sets
from pipeline.schema.section import result_fields
from pipeline.schema.stages import Evaluate

if TYPE_CHECKING:
    from pipeline.cluster import Cluster, Inline
    from pipeline.generate import Generator, Images
    from pipeline.in_buckets import Native
    from pipeline.metrics.features import Extractor
    from pipeline.tracking import Spool

INPUTS = ("ingest", "autoencoder", "encode", "diffusion")
MEMORY = 1_000_000_000  # bytes of training images that are looked at; the report says how many these were
SHOWN = 64  # samples in the grid
MEASURES = 2  # raised when a report holds figures that older ones have not
PAIRS = 32  # samples beside their nearest training image in the grids of neighbours

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Report:
    """values: plain JSON values, all figures and what they rest on. images: grids, uint8 [H, W, 3], by name.

    missing: figures that are not given, with the reason. extractor: what made the features.
    """

    values: dict[str, Any]
    images: dict[str, Images]
    missing: dict[str, str]
    extractor: Extractor = field(repr=False)


# ---- the stage -------------------------------------------------------------------------------------------------------


def recipe(config: Config) -> dict[str, Any]:
    """What decides on the report besides the models and the data."""
    values = result_fields(config.evaluate)
    if config.evaluate.extractor.path:  # a file is its content, not its name
        path = Path(config.evaluate.extractor.path)
        if not path.is_file():
            raise UserError(f"`evaluate.extractor.path`: {path} does not exist; give the extractor's weights")
        values["extractor"]["path"] = sha256_file(path)
    if config.evaluate.weights.endswith(".safetensors"):
        values["weights"] = weights_digest(config.evaluate.weights)
    return {**values, "mirrored": mirrored(config), "measures": MEASURES}


def weights_digest(path: str) -> str:
    """Of a file of weights that `evaluate.weights` names. UserError where there is none."""
    if not Path(path).is_file():
        raise UserError(f"`evaluate.weights`: {path} does not exist; give a file of weights, or a name")
    return sha256_file(path)


def mirrored(config: Config) -> bool:
    """Whether the models saw mirrored training images, so that copies of these count as copies."""
    return config.data.augment.flip or any(view.endswith("flip") for view in config.latents.views)


def run(
    config: Config, inputs: dict[str, Artifact], writer: Writer, cluster: Cluster | Inline, spool: Spool
) -> dict[str, Any]:
    """Measure on one worker; write report.json, the grids, and the classifier if one was trained."""
    threads = config.cluster.threads if config.cluster.threads != "auto" else 1
    arguments = {
        "config": config.model_dump(mode="json", by_alias=True),
        "inputs": {name: str(artifact.path) for name, artifact in inputs.items()},
        "path": str(writer.path),
        "threads": threads,
    }
    report: dict[str, Any] = next(iter(cluster.map(measure, [arguments], threads=threads, gpus=1)))
    spool.metrics({f"eval/{name}": round(value, 6) for name, value in key_figures(report).items()}, 0)
    from PIL import Image

    for name in report["grids"]:
        with Image.open(writer.path / f"{name}.png") as image:
            spool.image(GRID_KEYS[name], np.asarray(image), 0)
    for name in ("report.json", "classes.csv"):
        if (writer.path / name).exists():
            spool.file(writer.path / name)
    for line in lines(report):
        print(f"evaluate: {line}", flush=True)
    summary = {"key_figures": key_figures(report)}
    summary |= {key: report[key] for key in ("images", "missing", "verdict", "conditions")}
    spool.tags({"ldm.evaluated": comparable.text(report["conditions"])})
    spool.note("\n".join([headline(summary), "", *(f"- {line}" for line in lines(report))]))
    return summary


GRID_KEYS = {
    "samples": "samples_final/ema",
    "neighbours_pixels": "neighbours/pixels",
    "neighbours_features": "neighbours/features",
}


def measure(arguments: dict[str, Any]) -> dict[str, Any]:
    """On a worker: load models and images, evaluate, write the files; returns the report's values."""
    import torch
    from PIL import Image

    from pipeline.data.transforms import to_png
    from pipeline.extractors import extractor_of
    from pipeline.generate import from_artifacts
    from pipeline.in_buckets import native
    from pipeline.metrics import classes

    torch.set_num_threads(arguments["threads"])
    config, folder = Config.model_validate(arguments["config"]), Path(arguments["path"])
    inputs = {name: Artifact.load(path) for name, path in arguments["inputs"].items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = from_artifacts(
        inputs["autoencoder"], inputs["encode"], inputs["diffusion"], device, weights=config.evaluate.weights
    )
    train, held_out = (
        load_split(inputs["ingest"].path, split, config, config.evaluate.seed) for split in ("train", "val")
    )
    extractor = extractor_of(config, inputs["ingest"], lambda: (train, held_out))
    shapes = native(inputs["ingest"].path, config, min(config.evaluate.samples, len(held_out[0])))
    report = evaluate(generator, *train, *held_out, config.evaluate, extractor, mirrored(config), shapes)
    for name, image in report.images.items():
        atomic_write(folder / f"{name}.png", to_png(Image.fromarray(image)))
    if report.extractor.module is not None:
        report.extractor.save(folder / "extractor.safetensors")
    if "classes" in report.values:
        atomic_write(folder / "classes.csv", classes.to_csv(report.values["classes"]["table"]))
    values = {**report.values, "missing": report.missing, "grids": sorted(report.images)}
    write_json(folder / "report.json", values)
    return values


def split_order(folder: Path, split: str, config: Config, seed: int) -> tuple[Array, Array]:
    """(row of the index, class) int64 [n] of each image of a split, in a random order fixed by `seed`."""
    from pipeline.data.index import Index

    index = Index.open(folder, split, config.data.cache)
    rows = np.random.Generator(np.random.Philox(seed)).permutation(len(index))
    if not len(rows):
        raise UserError(f"{folder}: the {split} split is empty; give more images or another `data.split`")
    return rows, index.labels()[rows]


def load_split(folder: Path, split: str, config: Config, seed: int, limit: int | None = None) -> tuple[Images, Array]:
    """Images uint8 [n, H, W, C] and classes int64 [n] (-1: none) of a split, in the order of `split_order`; those of
    other shapes (`data.buckets`) are stretched to the square.

    At most MEMORY bytes of them, and at most `limit`. Raises UserError for an empty split, and for a damaged image by
    its name.
    """
    from pipeline.data.index import Index, read_image
    from pipeline.data.transforms import squared

    index, side, channels = Index.open(folder, split, config.data.cache), config.data.size, config.data.channels
    rows, labels = split_order(folder, split, config, seed)
    count = max(1, MEMORY // (side * side * channels))
    rows = rows[: count if limit is None else min(count, limit)]
    images = np.empty((len(rows), side, side, channels), np.uint8)
    for place in np.argsort(rows):  # read shard by shard: a remote one is copied once
        pixels = squared(read_image(index, int(rows[place]), config.data), side)
        images[place] = pixels.transpose(1, 2, 0)  # [C, H, W] -> [H, W, C]
    return images, labels[: len(rows)]


def key_figures(report: dict[str, Any]) -> dict[str, float]:
    """The figures that go into curves and tables, by name; those that could not be had are absent."""
    found = {name: report["reconstruction"].get(name) for name in ("psnr", "ssim")}
    found |= sets.key_figures(report)
    if "classes" in report:
        found["class_accuracy"] = report["classes"]["right"]
        found["classifier_accuracy"] = report["extractor"]["facts"]["held_out_accuracy"]
    for space, values in report["neighbours"].items():
        found[f"nearest_{space}_share"] = values["share_below"]
        found[f"nearest_{space}_ratio"] = values["sample_median"] / values["held_out_median"]
    return {name: float(value) for name, value in found.items() if value is not None}


def headline(summary: dict[str, Any]) -> str:
    """The verdict in one line. A distance is never alone."""
    values, parts = summary["key_figures"], []
    if "fd" in values:
        count = summary["images"]["compared"]
        passed = f"reconstructions: {values['fd_reconstructions']:.3g}, " if "fd_reconstructions" in values else ""
        parts.append(
            f"Fréchet distance {values['fd']:.3g} ({passed}real data: {values['fd_real']:.3g}, {count} images a set)"
        )
    if summary.get("verdict"):
        parts.append(summary["verdict"])
    if "class_accuracy" in values:
        parts.append(f"{values['class_accuracy']:.1%} of samples in their class")
    if "psnr" in values:
        parts.append(f"PSNR {values['psnr']:.2f} dB from posterior means")
    return ", ".join(parts) or "no figure: " + "; ".join(summary["missing"].values())


def lines(report: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    extractor, counts, result = report["extractor"], report["images"], []
    for name, value in report["reconstruction"].items():
        result.append(f"{name.upper()} {value:.4g} of {counts['held_out']} reconstructed held-out images")
    if "buckets" in report:
        side, shapes = report["buckets"]["stretched_to"], report["buckets"]["samples"]
        result.append(
            f"images of {len(shapes)} shapes: samples have those of training images, reconstructions are compared in "
            f"their own; for all else real images, reconstructions and samples are stretched to {side}x{side} alike"
        )
    result.append(f"features: {extractor['description']}, digest {extractor['digest'][:12]}")
    result += sets.lines(report)
    if "classes" in report:
        asked, right = report["classes"]["asked"], report["classes"]["right"]
        measured = extractor["facts"]["held_out_accuracy"]
        worst = min(report["classes"]["table"], key=lambda row: row["right"])
        result.append(
            f"{right:.1%} of {asked} samples in the class asked for (held-out images: {measured:.1%}); worst class "
            f"{worst['class']}: {worst['right']:.1%} of {worst['asked']}"
        )
    for space, near in report["neighbours"].items():
        result.append(
            f"nearest training image by {space}: median distance {near['sample_median']:.3g} of {near['samples']} "
            f"samples, {near['held_out_median']:.3g} of {near['held_out']} held-out images; {near['share_below']:.1%} "
            f"of samples nearer than the first percentile of these ({near['threshold']:.3g})"
        )
    return result + [f"{name} is not given: {reason}" for name, reason in report["missing"].items()]


# ---- the core --------------------------------------------------------------------------------------------------------


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
) -> Report:
    """Measure a generator against real images, uint8 [n, H, W, C], in random order; labels int64 [n], -1 for none.

    The first n training images are the half of the real-data baseline, and the extractor (`extractors.py`) must not be
    trained on them: what a network has seen has other features. Samples are asked for in the classes of training
    images, those first, so that a perfect generator's distance is the baseline's. n: equally many images in all sets
    compared. native: where images are of several shapes; the arrays hold squares.
    """
    from pipeline import in_buckets
    from pipeline.sampling import guidance_of

    n = min(config.samples, len(held_out), len(train) // 2)
    held_out = held_out[: config.samples]  # as many as samples: of tens of thousands, reconstruction takes its time
    asked = asked_classes(train_labels, config.samples, len(generator.classes)) if generator.classes else None
    samples, sampling, shown = draw_samples(generator, asked, config, native)
    if native is None:
        reconstructions = generator.decode(generator.encode(held_out, config.batch_size), config.batch_size)
    else:
        back = in_buckets.reconstructed(generator, native.held_out, config.batch_size)
        reconstructions = in_buckets.squares(back, native.side)
    named = {"train": train, "held_out": held_out, "samples": samples, "reconstructions": reconstructions}
    features = {name: extractor(images) for name, images in named.items()}

    report = Report({}, {}, {}, extractor)
    report.values = {
        "settings": result_fields(config),
        "model": generator.about,
        "sampling": sampling,
        **({} if native is None else native.told),
        "reconstruction": _reconstruction(held_out, reconstructions, report)
        if native is None
        else _reconstruction(native.held_out, back, report),
        **compare(named, features, n, config, report, guidance_of(sampling)),
        "neighbours": neighbours_of(train, held_out, samples, features, mirrored, report),
    }
    if asked is None:
        report.missing["class_accuracy"] = "the model has no class condition"
    else:
        classify(asked, generator.classes, named, features, held_out_labels[: config.samples], report)
    order = np.arange(len(samples)) if asked is None else np.argsort(asked[:SHOWN], kind="stable")
    report.images["samples"] = _grid(shown[order[:SHOWN]])
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
    conditions = {"extractor": extractor.digest, "images": n, "resolution": real.shape[1], "channels": real.shape[3]}
    return {
        "images": {**{name: len(images) for name, images in named.items()}, "compared": n},
        "extractor": {key: getattr(extractor, key) for key in ("kind", "digest", "description", "facts")},
        **found,
        "conditions": {**conditions, "real": digest, "guidance": guidance},
        "verdict": comparable.verdict(found["frechet"]),
    }


def classify(
    asked: Array,
    names: list[str],
    images: dict[str, Images],
    features: dict[str, Array],
    held_out_labels: Array,
    report: Report,
) -> None:
    """The share of samples that the classifier puts in the class that was asked for, in all and by class."""
    from pipeline.metrics import classes

    extractor = report.extractor
    if extractor.logits is None:
        report.missing["class_accuracy"] = f"the extractor {extractor.kind} knows no classes; use kind classifier"
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


def draw_samples(
    generator: Generator, asked: Array | None, config: Evaluate, native: Native | None = None
) -> tuple[Images, dict[str, Any], Images]:
    """The samples, what was asked of the generator (without the list of classes), and the samples as they are shown:
    the same, but for several shapes, of which the samples are stretched to squares."""
    from pipeline import in_buckets
    from pipeline.sampling import configured

    begun = time.monotonic()
    how = {"batch_size": config.batch_size, **configured(config)}
    classes = None if asked is None else [int(c) for c in asked]
    if native is None:
        request = generator.request(classes, config.samples, config.seed, **how)
        samples = shown = generator.sample(**request)
    else:
        made, request = in_buckets.samples(generator, classes, native.shapes, how, config.seed)
        samples, shown = in_buckets.squares(made, native.side), in_buckets.cells(made)
    print(f"evaluate: {len(samples)} samples, {len(samples) / (time.monotonic() - begun):.1f} images/s", flush=True)
    return samples, {key: value for key, value in request.items() if key != "classes"}, shown


def make_extractor(
    config: Evaluate, train: Images, labels: Array, held_out: Images, held_out_labels: Array, classes: int
) -> Extractor:
    """The extractor that the config asks for. Without two classes no classifier can be trained: random convolutions."""
    from pipeline.metrics import features

    chosen = config.extractor
    if chosen.path:
        return features.of_file(chosen)
    known, known_held_out = labels >= 0, held_out_labels >= 0
    if len(np.unique(labels[known])) < 2 or not known_held_out.any():
        return features.random_network(train, "the images have fewer than two classes")
    return features.train_classifier(
        train[known],
        labels[known],
        held_out[known_held_out],
        held_out_labels[known_held_out],
        classes=max(classes, int(labels.max()) + 1),
        steps=chosen.steps,
        seed=config.seed,
    )


def _reconstruction(images: Any, reconstructions: Any, report: Report) -> dict[str, float]:
    """images, reconstructions: uint8 [n, H, W, C], or a list of [h, w, C] of several shapes."""
    from pipeline.in_buckets import pixel_means
    from pipeline.metrics import pixel

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
    train: Images, held_out: Images, samples: Images, features: dict[str, Array], mirrored: bool, report: Report
) -> dict[str, Any]:
    """Distances to the nearest training image, by pixels and by features, and a grid of pairs for each."""
    from pipeline.metrics import neighbours

    trained = [train, train[:, :, ::-1]] if mirrored else [train]
    found = {}
    for space in ("pixels", "features"):
        nearest: dict[str, tuple[Array, Array]] = {}
        for side in trained:
            if space == "pixels":
                points = side.reshape(len(side), -1)
                queries = {
                    "samples": samples.reshape(len(samples), -1),
                    "held_out": held_out.reshape(len(held_out), -1),
                }
            else:
                points = features["train"] if side is train else report.extractor(side)
                queries = {name: features[name] for name in ("samples", "held_out")}
            for name, query in queries.items():
                distances, indices = neighbours.nearest(query, points)
                images = side[indices[:PAIRS]] if name == "samples" else side[:0]
                nearest[name] = _nearer(nearest.get(name), (distances, images))
        found[space] = neighbours.nearness(space, nearest["samples"][0], nearest["held_out"][0], len(train)).json()
        # [p, 2, H, W, C] -> [2p, H, W, C]: sample, neighbour, sample, neighbour ...
        pairs = np.stack([samples[:PAIRS], nearest["samples"][1]], axis=1)
        report.images[f"neighbours_{space}"] = _grid(pairs.reshape(-1, *samples.shape[1:]), columns=8)
    return found


def _nearer(old: tuple[Array, Array] | None, new: tuple[Array, Array]) -> tuple[Array, Array]:
    """Of two searches the nearer result: distances [n], and images of the first p."""
    if old is None:
        return new
    shown = len(new[1])
    swap = new[0][:shown] < old[0][:shown]
    return np.minimum(old[0], new[0]), np.where(swap[:, None, None, None], new[1], old[1])


def _grid(images: Images, columns: int | None = None) -> Images:
    from pipeline.generate import grid

    return grid(images, columns)


def real_digest(train: Images, held_out: Images) -> str:
    """SHA-256 over the real images that the distances stand on."""
    import hashlib

    total = hashlib.sha256()
    for images in (train, held_out):
        total.update(str(images.shape).encode())
        total.update(np.ascontiguousarray(images).tobytes())
    return total.hexdigest()
