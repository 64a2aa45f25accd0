"""Score a folder of images, made by whatever model, against a data set: `ldm evaluate --images DIR --config X`.

Extractor, real images, count and resolution are those of `ldm evaluate` under the same config, so that the figures may
stand beside those of models that were trained here. What cannot be made equal is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import Artifact, Store
from pipeline.config import Config
from pipeline.data.folders import walk
from pipeline.data.listing import plain
from pipeline.errors import UserError, many
from pipeline.evaluation import scores
from pipeline.evaluation.metrics.frechet import MIN_IMAGES
from pipeline.evaluation.report import headline, key_figures, lines
from pipeline.files import read_json, write_json
from pipeline.stages import evaluate as stage
from pipeline.stages import graph

Array = np.ndarray[Any, np.dtype[Any]]


def score(folder: Path, config: Config, resize: bool = False, out: Path | None = None) -> dict[str, Any]:
    """Measure the images under `folder`; returns the report's values, and writes them to `out` as JSON.

    The images must be `data.size` pixels a side, or are made so as the data set's own were (resize), and at least as
    many as are compared. Classes: from samples.json, as `ldm sample` writes it, else from subfolders named as classes.
    The data set is ingested if it is not. Raises UserError.
    """
    from pipeline.data.split import load_split
    from pipeline.evaluation.extractors import extractor_of

    if out is not None and out.exists():
        raise UserError(f"--out {out}: exists; give a new file")
    if config.data.buckets is not None:
        raise UserError("--images: a folder is scored as squares, and `data.buckets` asks for several shapes")
    if config.data.clip is not None:
        raise UserError("--images: a folder of images is scored, and `data.source.kind` is clips")
    if config.data.measured:
        key = "values" if config.data.values else "sound"
        raise UserError(f"--images: a folder is scored as 8-bit pictures, and `data.{key}` says that these are none")
    config = graph.absolute(config)
    files, labels = listing(folder, [])  # before anything runs
    if left_out := walk(folder).left_out:
        print(f"evaluate: not taken from {folder}: {left_out}", flush=True)
    ingest = ingested(config)
    classes = ingest.summary["classes"]
    if classes:
        files, labels = listing(folder, classes)
    train, held_out = (load_split(ingest.path, split, config, config.evaluate.seed) for split in ("train", "val"))
    n = min(config.evaluate.samples, len(held_out[0]), len(train[0]) // 2)
    if len(files) < n:
        fewer = f", or set evaluate.samples={len(files)} here and where you compare with"
        raise UserError(
            f"{folder}: {many(len(files), 'image')}, and {n} are compared; give as many"
            + (fewer if len(files) >= MIN_IMAGES else f" ({MIN_IMAGES} at least: fewer say nothing of a distribution)")
        )
    order = np.random.Generator(np.random.Philox(config.evaluate.seed)).permutation(
        len(files)
    )  # files lie class by class
    order = order[: config.evaluate.samples]
    samples, asked = read(folder, [files[i] for i in order], config, resize), labels[order]

    report = scores.Report({}, {}, {}, extractor_of(config, ingest, lambda: (train, held_out)))
    named = {"train": train[0], "held_out": held_out[0][: config.evaluate.samples], "samples": samples}
    features = {name: report.extractor(images) for name, images in named.items()}
    report.values = {
        "model": {"folder": str(folder.absolute()), "resized": resize},
        "reconstruction": {},
        **scores.compare(named, features, n, config.evaluate, report, guidance=None),
        "neighbours": scores.neighbours_of(
            train[0], named["held_out"], samples, features, stage.mirrored(config), report
        ),
    }
    if (asked >= 0).all():
        scores.classify(asked, classes, named, features, held_out[1][: config.evaluate.samples], report)
    else:
        report.missing["class_accuracy"] = "the folder does not say which class an image is to be"
    values = {**report.values, "missing": report.missing}
    values["key_figures"] = key_figures(values)
    if out is not None:
        write_json(out, values)
    return values


def ingested(config: Config) -> Artifact:
    """The data set's finished ingest artifact; it is made if it is not there."""
    step = graph.plan(config, Store(config.run.root), "ingest")[0]
    return step.artifact or graph.run(config, "ingest")[0].artifact


def listing(folder: Path, classes: list[str]) -> tuple[list[str], Array]:
    """Image files under a folder, relative and in order of name, and the class int64 [n] of each, -1 where unknown."""
    from pipeline.data.transforms import FORMATS

    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; give the folder of the images")
    if (folder / "samples.json").is_file():  # of `ldm sample`: its grid is none of the images
        entries = read_json(folder / "samples.json")["images"]
        known = [-1 if entry["class"] is None else int(entry["class"]) for entry in entries]
        return [entry["file"] for entry in entries], np.array(known, np.int64)
    walked = walk(folder)
    found = sorted(walked.files)
    if not found:
        others = f"; there are {walked.left_out}" if walked.left_out else ""
        raise UserError(f"{folder}: holds no images ({', '.join(sorted(FORMATS))}){others}")
    number = {name: i for i, name in enumerate(classes)}
    labels = [number.get(plain(path.parent.name), -1) for path in found]
    return [str(path) for path in found], np.array(labels, np.int64)


def read(folder: Path, files: list[str], config: Config, resize: bool) -> Array:
    """uint8 [n, H, W, C] of image files. UserError for one that cannot be read or has another size."""
    from pipeline.data.transforms import BadImage, decode, shrink, to_array

    data = config.data
    images = np.empty((len(files), data.size, data.size, data.channels), np.uint8)
    for i, name in enumerate(files):
        try:
            image = decode((folder / name).read_bytes(), data.channels, data.background, data.max_pixels)
        except (OSError, BadImage) as error:
            raise UserError(f"{folder / name}: cannot be used ({error}); mend or remove it") from None
        if image.size != (data.size, data.size) and not resize:
            raise UserError(
                f"{folder / name}: {image.size[0]}x{image.size[1]} pixels, and the data set is compared at "
                f"{data.size}x{data.size}: figures of two resolutions cannot be compared; make the images that size, "
                "or give --resize, which does to them what was done to the data set's"
            )
        images[i] = to_array(shrink(image, data.size, square=True)).transpose(1, 2, 0)  # [C, H, W] -> [H, W, C]
    return images


def text(values: dict[str, Any]) -> str:
    """The report for a terminal: the verdict, all lines, and the classes one by one."""
    summary = {key: values[key] for key in ("key_figures", "images", "missing", "verdict")}
    rows = [headline(summary), *lines(values)]
    for row in values.get("classes", {}).get("table", []):
        real = "" if row["real"] is None else f" (held-out images: {row['real']:.1%})"
        rows.append(f"  {row['class']}: {row['right']:.1%} of {row['asked']} in their class{real}")
    return "\n".join(rows)
