"""How good reconstructions and samples of a model of clips are: frame by frame as images (`scores.py`), and flicker.

Every figure of images is one of frames: a set of clips [n, T, H, W, C] counts as n T images, those of a clip together,
so that no clip is in two sets. Flicker is the mean absolute difference of successive frames, beside that of real clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation import scores
from pipeline.evaluation.extractors import keep, make_extractor, pool_path
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact
    from pipeline.config import Config
    from pipeline.data.pictures import Images
    from pipeline.data.split import Array
    from pipeline.evaluation.metrics.features import Extractor
    from pipeline.generate.generator import Generator

MEASURES = "frames 2"  # raised when a report of clips holds other figures
SETS = ("real", "samples", "reconstructions", "train")  # of the figures of flicker


def frames_of(clips: Images) -> Images:
    """Clips [n, T, H, W, C] -> images [n T, H, W, C]."""
    return clips.reshape(-1, *clips.shape[2:])


def flicker(clips: Images) -> float:
    """Mean absolute difference of successive frames of clips [n, T, H, W, C], in grey levels of 0 to 255: a mean over
    pixels, frames and clips. NaN for clips of one frame."""
    if clips.shape[1] < 2:
        return float("nan")
    each = [np.abs(np.diff(clip.astype(np.int16), axis=0)).mean() for clip in clips]  # [T - 1, H, W, C]
    return float(np.mean(each))


def extractor_of(
    config: Config, ingest: Artifact, train: Images, labels: Array, held_out: Images, held_out_labels: Array, n: int
) -> Extractor:
    """The extractor of frames: from the pool, or trained on the training clips behind the first n, which it must not
    have seen."""
    from pipeline.evaluation.metrics import features

    path = pool_path(config, ingest)
    if path is None:
        return features.of_file(config.evaluate.extractor)
    if path.exists():
        return features.load(path)
    frames, classes = train.shape[1], len(ingest.summary["classes"])
    given = (frames_of(train[n:]), labels[n:].repeat(frames), frames_of(held_out), held_out_labels.repeat(frames))
    return keep(make_extractor(config.evaluate, *given, classes), path, features.load)


def evaluate(
    generator: Generator,
    train: Images,
    train_labels: Array,
    held_out: Images,
    held_out_labels: Array,
    config: Config,
    ingest: Artifact,
    mirrored: bool,
    told: Mapping[str, Any] | None = None,
) -> tuple[scores.Report, Images]:
    """The report, as `scores.evaluate` has it, of clips [n, T, H, W, C] in random order, and the samples."""
    from pipeline.generate.sampling import guidance_of
    from pipeline.generate.told import words

    section, frames = config.evaluate, train.shape[1]
    n = min(section.samples, len(held_out), len(train) // 2)
    extractor = extractor_of(config, ingest, train, train_labels, held_out, held_out_labels, n)
    held_out, held_out_labels = held_out[: section.samples], held_out_labels[: section.samples]
    names = generator.classes
    asked = scores.asked_classes(train_labels, section.samples, len(names)) if names else None
    samples, sampling, _ = scores.draw_samples(generator, asked, section, None, told)
    reconstructions = generator.decode(generator.encode(held_out, section.batch_size), section.batch_size)
    sets = {"train": train, "held_out": held_out, "samples": samples, "reconstructions": reconstructions}
    named = {name: frames_of(clips) for name, clips in sets.items()}
    features = {name: extractor(images) for name, images in named.items()}
    report = scores.Report({}, {}, {}, extractor)
    report.values = {
        "settings": result_fields(section),
        "model": generator.about,
        "sampling": sampling,
        "clips": {"frames": frames, **{name: len(clips) for name, clips in sets.items()}, "compared": n},
        "reconstruction": scores.reconstruction(named["held_out"], named["reconstructions"], report),
        **scores.compare(named, features, n * frames, section, report, guidance_of(sampling)),
        "neighbours": scores.neighbours_of(
            named["train"], named["held_out"], named["samples"], features, mirrored, report
        ),
    }
    if frames > 1:
        of = (held_out, samples, reconstructions, train)
        report.values["flicker"] = dict(zip(SETS, map(flicker, of), strict=True))
    else:
        report.missing["flicker"] = "clips of one frame have none"
    if asked is None:
        report.missing["class_accuracy"] = "the model has no class condition"
    else:
        labels = held_out_labels.repeat(frames)
        scores.classify(asked.repeat(frames), names, named, features, labels, report)
    order = np.arange(len(samples)) if asked is None else np.argsort(asked[: scores.SHOWN], kind="stable")
    report.images["samples"] = scores.picture(generator.shown(samples[order[: scores.SHOWN]]), columns=1)
    if told:
        each = words(told, scores.SHOWN)
        report.values["shown"] = [each[i] for i in order[: scores.SHOWN]]
    return report, samples


def write_moving(folder: Path, samples: Images, rate: float) -> None:
    """Write samples.webp: the first of them side by side, moving."""
    from pipeline.files import atomic_write
    from pipeline.generate.clip_samples import moving_grid

    atomic_write(folder / "samples.webp", moving_grid(samples[: scores.SHOWN], rate))
