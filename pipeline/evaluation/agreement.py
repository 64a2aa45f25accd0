"""Does a model do what it is told: samples told held-out rows, judged by judges that saw real training images only.

Beside every figure of samples stand the same of the real images of these rows (the judge's own errors are in it), of
these through the autoencoder, and of the same samples against other rows (chance). What is judged need not be what the
model is told: one that is told a caption is judged by the columns that the caption was made from. Judges are trained in
`judges.py`, the figures are `metrics/agreement.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import condition_values
from pipeline.data.captions import captions_of
from pipeline.errors import UserError
from pipeline.evaluation.metrics import agreement as metrics

if TYPE_CHECKING:
    from pipeline.data.pictures import Images
    from pipeline.evaluation.judges import Trained
    from pipeline.generate.generator import Generator

Metas = Sequence[Mapping[str, Any]]  # of each image its columns
MOST_VALUES = 1000  # of a column; and at least two images each, in the mean
BESIDE = {"real": "real images", "decoded": "these through the autoencoder", "shuffled": "other rows"}


@dataclass(frozen=True)
class Judges:
    """What judges. columns: {kind, column, values or range} by name; empty without a judge of columns."""

    columns: dict[str, dict[str, Any]]
    judge: Trained | None
    towers: Trained | None


def columns_of(names: Sequence[str], metas: Metas, known: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """How each column is judged, from the training images' own values; as the model is told it (known: its attributes)
    where it is, else as labels where a value is a list, else as one value of several. UserError for what cannot be
    judged, beginning with `where`."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        same = [own for other, own in known.items() if name in (other, own.get("column"))]
        as_told: Mapping[str, Any] = same[0] if same else {}
        column = as_told.get("column", name)
        values = [meta[column] for meta in metas if meta.get(column) is not None]
        if not values:
            raise UserError(f"{where}: no image has a value of {column!r}; {_there(column, metas)}")
        kind = as_told.get("kind") or (
            "multi_label" if any(isinstance(v, (list, tuple)) for v in values) else "categorical"
        )
        own: dict[str, Any] = {"kind": kind, "column": column}
        if kind == "continuous":
            found[name] = {**own, "range": list(as_told["range"])}
            continue
        if kind == "multi_label":
            own["separator"] = as_told.get("separator", ",")
            several = {text for v in values for text in condition_values.labels(v, own["separator"]) or ()}
        else:
            several = {text for v in values if (text := condition_values.label(v))}
        if len(several) < 2 and kind == "categorical":
            raise UserError(f"{where}: all images have the same value of {column!r}; leave it out")
        if not several or len(several) > min(MOST_VALUES, len(values) // 2):
            raise UserError(
                f"{where}: {column!r} has {len(several):,} different values in {len(values):,} images: too many to be "
                "learned; a sentence is judged as caption, a number only where the model is told it as an attribute"
            )
        found[name] = {**own, "values": sorted(several)}
    return found


def rows_of(columns: Mapping[str, Any], metas: Metas, strict: str = "") -> dict[str, Any]:
    """Of each column the rows of a tensor, as of `data/condition_values.py`. A value that training images have not is
    none; with `strict`, which says where, it is a UserError, and so is a column that no image has."""
    found: dict[str, Any] = {}
    for name, own in columns.items():
        rows = []
        for meta in metas:
            try:
                rows.append(condition_values.row(name, own, meta.get(own["column"])))
            except ValueError as error:
                if strict:
                    raise UserError(f"{strict}: {meta.get('__key__', 'a row')}: {error}") from None
                rows.append(condition_values.row(name, own, None))
        if strict and all(meta.get(own["column"]) is None for meta in metas):
            raise UserError(f"{strict}: no row has a value of {own['column']!r}; {_there(own['column'], metas)}")
        found[name] = np.stack(rows)
    return found


def _there(column: str, metas: Metas) -> str:
    """The end of an error message: the columns that there are."""
    from models.registry import nearest

    return nearest(column, {str(key) for meta in metas for key in meta if key != "__key__"})


def caption_of(meta: Mapping[str, Any]) -> str | None:
    """The first caption of an image: the one that a model is told here."""
    return next(iter(captions_of(meta.get("caption"))), None)


def train(
    images: Images,
    metas: Metas,
    columns: Mapping[str, dict[str, Any]],
    captions: bool,
    pool: Path,
    steps: int,
    seed: int,
    flip: bool,
    where: str,
    encoder: Mapping[str, Any] | None = None,
) -> Judges:
    """The judges of these real images of training, uint8 [n, H, W, C]: from the pool, or trained and put there.
    encoder: a frozen one that reads captions for them (`reader_of`)."""
    from pipeline.evaluation import judges

    judge = towers = None
    texts = [caption_of(meta) for meta in metas]
    some = [i for i, text in enumerate(texts) if text]
    if captions and len({texts[i] for i in some}) < 2:
        raise UserError(f"{where}: {'no image has a caption' if not some else 'all captions are the same'}; name "
                        "their column, or judge columns only")  # fmt: skip
    if columns:
        judge = judges.of_columns(images, rows_of(columns, metas, where), columns, pool, steps, seed, flip)
    if captions:
        towers = judges.of_captions(images[some], [str(texts[i]) for i in some], pool, steps, seed, flip, encoder)
    return Judges({name: dict(own) for name, own in columns.items()}, judge, towers)


def reader_of(generator: Generator) -> Mapping[str, Any] | None:
    """The frozen text encoder of a model, by which captions are judged as well; None where it has none."""
    caption = generator.options["condition"].get("caption") or {}
    return caption["encoder"] if "empty" in caption else None


def draw(generator: Generator, metas: Metas, label: str, seed: int, **how: Any) -> Images:
    """A sample for each row, told all that the model is told: uint8 [n, H, W, C]. label: the column of the class."""
    return generator.images(request_of(generator, metas, label, seed, **how))


def request_of(generator: Generator, metas: Metas, label: str, seed: int, **how: Any) -> dict[str, Any]:
    """The request of these samples, checked; arguments are those of `draw`."""
    from pipeline.generate import told

    if not told.names(generator.options):
        raise UserError("agreement: this model is told nothing, neither a class nor attributes nor captions")
    if generator.options["condition"].get("spatial"):
        raise UserError("agreement: this model is told pictures, which these rows have not; nothing to compare")
    classes = [str(meta[label]) for meta in metas] if generator.classes else None
    return generator.request(classes, len(metas), seed, **told.of_samples(generator.options, metas), **how)


def tellable(generator_classes: Sequence[str], metas: Metas, label: str) -> list[int]:
    """The rows that a sample can be asked for: those with a class that the model knows, where it knows classes."""
    return [i for i, meta in enumerate(metas) if not generator_classes or meta.get(label) in generator_classes]


def measure(judges: Judges, samples: Images, real: Images, decoded: Images, metas: Metas) -> dict[str, Any]:
    """All figures of samples that were told `metas`, beside those of the real images of these rows, and of these as the
    autoencoder gives them back: what samples lack more than that is the denoiser's. All in one random order.

    {rows, columns: by name, and `all`, {samples, real, decoded, shuffled}; captions: {candidates, samples, real,
    decoded, shuffled, chance}; judge, towers: digest and facts}.
    """
    from pipeline.evaluation import judges as networks

    values: dict[str, Any] = {"rows": len(metas)}
    images = {"samples": samples, "real": real, "decoded": decoded}
    if judges.judge:
        told, columns = rows_of(judges.columns, metas), judges.columns
        given = {of: networks.answers(judges.judge, several) for of, several in images.items()}
        sets = {of: metrics.shares(columns, answers, told) for of, answers in given.items()}
        sets["shuffled"] = metrics.shuffled(columns, given["samples"], told)
        values["columns"] = {
            name: {of: found[name] for of, found in sets.items() if name in found} for name in sets["samples"]
        }
        values["judge"] = {"digest": judges.judge.digest, **judges.judge.about["facts"]}
    if judges.towers:
        texts = [caption_of(meta) for meta in metas]
        some = [i for i, text in enumerate(texts) if text]
        candidates, own = metrics.distinct([str(texts[i]) for i in some])
        count = len(candidates)
        if count > 1:
            near = {of: networks.scores(judges.towers, several[some], candidates) for of, several in images.items()}
            values["captions"] = {
                "candidates": count,
                **{of: metrics.recall(metrics.ranks(scores, own), count) for of, scores in near.items()},
                "shuffled": metrics.recall_shuffled(near["samples"], own),
                "chance": metrics.recall_chance(count),
            }
        values["towers"] = {"digest": judges.towers.digest, **judges.towers.about["facts"]}
    return values


def key_figures(values: Mapping[str, Any]) -> dict[str, float]:
    """Figures by name: `agreement/mouth`, `agreement/mouth_real`, ..., of captions `agreement/caption_recall_10`."""
    found: dict[str, float] = {}
    for name, sets in values.get("columns", {}).items():
        plain = "".join(c if c.isalnum() or c in "_-. " else "_" for c in name)  # what MLflow takes
        for of, own in sets.items():
            end = "" if of == "samples" else f"_{of}"
            figure, value = ("", own["right"]) if "right" in own else ("_error", own["error"])
            found[f"agreement/{plain}{figure}{end}"] = value
    for of in (of for of in values.get("captions", {}) if of != "candidates"):
        for name, value in values["captions"][of].items():
            found[f"agreement/caption_{name}{'' if of == 'samples' else f'_{of}'}"] = value
    return found


def headline(figures: Mapping[str, float]) -> str:
    """The most that key figures say in a few words; empty where there are none."""
    columns = [name for name in figures if name.startswith("agreement/") and f"{name}_real" in figures]
    shares = [name for name in columns if "caption_" not in name and not name.endswith("_error")]
    for name in ("agreement/all", *shares, "agreement/caption_recall_10"):
        if name in figures:
            what = "all as told" if name == "agreement/all" else name.removeprefix("agreement/").replace("_", " ")
            return f"{what}: {figures[name]:.1%} of samples (real images: {figures[f'{name}_real']:.1%})"
    return ""


def lines(values: Mapping[str, Any]) -> list[str]:
    """The figures as lines of text, those of samples first."""
    result = []
    for name, sets in values.get("columns", {}).items():
        samples = sets["samples"]
        error = "error" in samples
        beside = [f"{title}: {_figure(sets[of])}" for of, title in BESIDE.items() if of in sets]
        if error:
            said = f"{name}: told and seen differ by {_figure(samples)} in the mean of {samples['count']}"
        else:
            between = f"[{samples['low']:.1%}, {samples['high']:.1%}] of {samples['count']}"
            said = f"{'all columns at once' if name == 'all' else name}: {_figure(samples)} as told {between}"
        result.append(f"{said} ({', '.join(beside)})")
    if "captions" in values:
        own = values["captions"]
        for name in own["samples"]:
            beside = [f"{title}: {own[of][name]:.3g}" for of, title in BESIDE.items() if name in own[of]]
            beside.append(f"drawn: {own['chance'][name]:.3g}")
            said = f"own caption among {own['candidates']}, {name.replace('_', ' ')} {own['samples'][name]:.3g}"
            result.append(f"{said} ({', '.join(beside)})")
    return result


def _figure(share: Mapping[str, Any]) -> str:
    return f"{share['error']:.3g}" if "error" in share else f"{share['right']:.1%}"
