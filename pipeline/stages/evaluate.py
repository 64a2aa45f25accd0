"""Stage 5, evaluate: a model against real images, on one worker: a report, grids, the extractor.

What is measured is in `evaluation/scores.py`, what is said of it in `evaluation/report.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts import Artifact, Writer
from pipeline.cluster.said import Said
from pipeline.config import Config
from pipeline.data.sources import digests_folder_of
from pipeline.data.split import load_split
from pipeline.errors import UserError
from pipeline.evaluation import band_scores, clip_scores, text_embeddings, text_scores
from pipeline.evaluation import report as words
from pipeline.evaluation.report import key_figures, lines
from pipeline.evaluation.scores import evaluate
from pipeline.files import atomic_write, sha256_file, write_json
from pipeline.past import comparable
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster
    from pipeline.cluster.inline import Inline
    from pipeline.data.pictures import Images
    from pipeline.generate.generator import Generator
    from pipeline.tracking.tracker import Spool

MEASURES = 2  # raised when a report holds figures that older ones have not


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
    text = {"text": text_scores.MEASURES} if config.data.source.kind == "text" else {}
    if text and (name := text_embeddings.frozen_name(digests_folder_of(config.run.root))):
        text["embeddings"] = name  # they come from what is installed, not from the config
    text |= {"clips": clip_scores.MEASURES} if config.data.clip else {}
    text |= {"bands": band_scores.MEASURES} if config.data.values and config.data.channels > 1 else {}
    return {**values, "mirrored": mirrored(config), "measures": MEASURES, **text}


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
    threads = cluster.alone()
    arguments = {
        "config": config.model_dump(mode="json", by_alias=True),
        "inputs": {name: str(artifact.path) for name, artifact in inputs.items()},
        "path": str(writer.path),
        "threads": threads,
    }
    report: dict[str, Any] = next(
        iter(cluster.map(measure, [arguments], threads=threads, gpus=1, said=Said(writer.work / "said")))
    )
    spool.metrics({f"eval/{name}": round(value, 6) for name, value in key_figures(report).items()}, 0)
    from PIL import Image

    for name in report["grids"]:
        with Image.open(writer.path / f"{name}.png") as image:
            spool.image(GRID_KEYS[name], np.asarray(image), 0, report.get("shown", ()) if name == "samples" else ())
    for name in ("report.json", "classes.csv", "samples.jsonl", "samples.webp"):
        if (writer.path / name).exists():
            spool.file(writer.path / name)
    for name in report.get("files", ()):
        spool.file(writer.path / name, str(Path(name).parent))
    for line in lines(report):
        print(f"evaluate: {line}", flush=True)
    summary = {"key_figures": key_figures(report)}
    summary |= {key: report[key] for key in ("images", "missing", "verdict", "conditions")}
    spool.tags({"ldm.evaluated": comparable.text(report["conditions"])})
    spool.note("\n".join([words.headline(summary), "", *(f"- {line}" for line in lines(report))]))
    return summary


def headline(summary: dict[str, Any]) -> str:
    return words.headline(summary)


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
    from pipeline.evaluation.extractors import extractor_of
    from pipeline.evaluation.metrics import classes
    from pipeline.evaluation.shapes import native
    from pipeline.evaluation.told import conditions_of, told_of
    from pipeline.generate.folder import from_artifacts

    torch.set_num_threads(arguments["threads"])
    config, folder = Config.model_validate(arguments["config"]), Path(arguments["path"])
    inputs = {name: Artifact.load(path) for name, path in arguments["inputs"].items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = from_artifacts(
        inputs["autoencoder"], inputs["encode"], inputs["diffusion"], device, weights=config.evaluate.weights
    )
    if config.data.source.kind == "text":
        return measure_text(config, inputs, generator, folder)
    train, held_out = (
        load_split(inputs["ingest"].path, split, config, config.evaluate.seed, clips=True) for split in ("train", "val")
    )
    known = conditions_of(inputs["diffusion"]) if config.diffusion.condition.spatial else None
    told = told_of(config, inputs["ingest"].path, generator.options, "train", config.evaluate.samples, known)
    if generator.clip is not None:
        sets = (*train, *held_out, config, inputs["ingest"], mirrored(config), told)
        report, clips = clip_scores.evaluate(generator, *sets)
        clip_scores.write_moving(folder, clips, generator.clip["rate"])
    else:
        extractor = extractor_of(config, inputs["ingest"], lambda: (train, held_out))
        shapes = native(inputs["ingest"].path, config, min(config.evaluate.samples, len(held_out[0])))
        report = evaluate(generator, *train, *held_out, config.evaluate, extractor, mirrored(config), shapes, told)
    for name, image in report.images.items():
        atomic_write(folder / f"{name}.png", to_png(Image.fromarray(image)))
    for name, content in report.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        atomic_write(folder / name, content)
    if report.extractor.module is not None:
        report.extractor.save(folder / "extractor.safetensors")
    if "classes" in report.values:
        atomic_write(folder / "classes.csv", classes.to_csv(report.values["classes"]["table"]))
    if config.evaluate.agreement:
        report.values["agreement"] = agreement_of(config, inputs["ingest"], generator, train[0], held_out[0])
    values = {**report.values, "missing": report.missing, "grids": sorted(report.images)}
    values |= {"files": sorted(report.files)} if report.files else {}
    write_json(folder / "report.json", values)
    return values


def measure_text(config: Config, inputs: dict[str, Artifact], generator: Generator, folder: Path) -> dict[str, Any]:
    """`measure` of a model of text: report.json, and samples.jsonl, a sample a line."""
    from pipeline.evaluation.told import befores, metas_of, told_of
    from pipeline.generate.told import of_samples

    seed, data = config.evaluate.seed, inputs["ingest"].path
    train, labels = text_scores.load_texts(data, "train", config, seed, text_scores.TRAINING)
    held_out = text_scores.load_texts(data, "val", config, seed, config.evaluate.samples)
    before = None
    if getattr(config.data.source, "before", None) and config.diffusion.condition.caption:
        before = befores(config, data, "train", len(train)), befores(config, data, "val", len(held_out[0]))
        told = of_samples(generator.options, metas_of(config, data, "val", len(held_out[0])))  # also of no class
    else:
        told = told_of(config, data, generator.options, "train", config.evaluate.samples)
    values, samples = text_scores.evaluate(generator, train, labels, *held_out, config, told, before)
    lines = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    atomic_write(folder / "samples.jsonl", "".join(lines))
    values["grids"] = []
    write_json(folder / "report.json", values)
    return values


def agreement_of(
    config: Config, ingest: Artifact, generator: Generator, train: Images, held_out: Images
) -> dict[str, Any]:
    """The figures of `evaluation/agreement.py` of samples that are told held-out rows. train, held_out: images as
    `load_split` gives them."""
    from pipeline.evaluation import agreement
    from pipeline.evaluation.told import label_of, metas_of
    from pipeline.generate.sampling import configured

    section, seed = config.evaluate.agreement, config.evaluate.seed
    assert section
    label, where = label_of(config), "`evaluate.agreement`"
    told = metas_of(config, ingest.path, "train", len(train))
    known = generator.options["condition"].get("attributes", {})
    columns = agreement.columns_of(section.columns, told, known, where)
    pool = Path(config.run.root) / "extractors"
    judges = agreement.train(
        train,
        told,
        columns,
        section.captions,
        pool,
        section.steps,
        seed,
        config.data.augment.flip,
        where,
        agreement.reader_of(generator),
    )
    metas = metas_of(config, ingest.path, "val", len(held_out))
    rows = agreement.tellable(generator.classes, metas, label)[: section.samples]
    if len(rows) < 2:
        raise UserError(f"{where}: {len(rows)} held-out images can be told to the model, 2 at least; hold out more")
    chosen = [metas[i] for i in rows]
    how = {"batch_size": config.evaluate.batch_size, **configured(config.evaluate)}
    samples = agreement.draw(generator, chosen, label, seed, **how)
    real = held_out[rows]
    decoded = generator.decode(generator.encode(real, config.evaluate.batch_size), config.evaluate.batch_size)
    return agreement.measure(judges, samples, real, decoded, chosen)
