"""What an audit looks at: the images of a run's data that a model was and was not trained on, and what it is told of
them. The audit itself is `audit.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts import Artifact
from pipeline.config import Config
from pipeline.errors import UserError, many
from pipeline.evaluation.audit import LEAST, Part, Subject
from pipeline.files import read_json
from pipeline.generate import adapters
from pipeline.networks import build_network, load_weights

if TYPE_CHECKING:
    from pipeline.data.pictures import Images
    from pipeline.generate.generator import Generator

    Split = tuple[Images, np.ndarray[Any, np.dtype[Any]]]


def check(config: Config, ingest: Artifact, diffusion: Artifact) -> None:
    """UserError for what an audit can say nothing of: before any image is read."""
    from pipeline.data.index import Index

    if config.data.buckets is not None:
        raise UserError("audit: knows square images only, and `data.buckets` asks for several shapes")
    count = len(Index.open(ingest.path, "val", config.data.cache))
    if count < LEAST:
        raise UserError(f"audit: {many(count, 'held-out image')}, {LEAST} at least; hold out more (`data.split`)")
    if config.diffusion.distil:
        teacher_file(config, ingest, diffusion.recipe["training"]["init_from"])


def teacher_file(config: Config, ingest: Artifact, begun: str) -> Path:
    """The file of the weights that a student began with, by their SHA-256 `begun`. UserError where it is gone, or was
    trained on other images."""
    file, _ = adapters.find(begun, [str(config.diffusion.training.init_from)], config.run.root)
    if file is None:
        raise UserError(
            f"audit: the teacher of this student, weights of content {begun[: adapters.SHOWN]}, is neither at "
            f"{config.diffusion.training.init_from} nor under {config.run.root}; bring it back"
        )
    manifest = file.parent / "manifest.json"
    if manifest.is_file() and read_json(manifest)["inputs"]["ingest"]["content"] != ingest.content:
        raise UserError(
            f"audit: the teacher of this student, {file.parent}, was trained on other images than {ingest.name}; "
            "a student knows of its teacher's alone, so audit that one"
        )
    return file


def teacher_of(model: Generator, config: Config, ingest: Artifact, diffusion: Artifact) -> Generator | None:
    """Of a student its teacher, on the same device; None of another model. UserError as of `teacher_file`."""
    if "student" not in model.options:
        return None
    file = teacher_file(config, ingest, diffusion.recipe["training"]["init_from"])
    options = {name: value for name, value in model.options.items() if name != "student"}
    network = build_network(options)
    load_weights(network, file)
    return dataclasses.replace(model, options=options, network=network.eval().to(model.device))


def subject_of(
    model: Generator, config: Config, ingest: Artifact, diffusion: Artifact, count: int
) -> tuple[Subject, dict[str, Any]]:
    """A model with the images of its data, at most `count` of either split, and what samples are told (as arguments of
    `Generator.request`: classes and conditions of training images). UserError where there is too little to look at."""
    from pipeline.data.index import Index
    from pipeline.data.split import load_split
    from pipeline.evaluation.extractors import extractor_of
    from pipeline.evaluation.scores import asked_classes
    from pipeline.generate.class_numbers import Label

    teacher = teacher_of(model, config, ingest, diffusion)
    splits = {name: load_split(ingest.path, name, config, config.evaluate.seed) for name in ("train", "val")}
    extractor = extractor_of(config, ingest, lambda: (splits["train"], splits["val"]))
    train, members = _part(model, config, ingest, diffusion, "train", splits["train"], count)
    _, held_out = _part(model, config, ingest, diffusion, "val", splits["val"], count)
    n = min(len(members.images), len(held_out.images))
    members, held_out = (Part(part.images[:n], part.told, part.key) for part in (members, held_out))
    trained_on = len(Index.open(ingest.path, "train", config.data.cache))
    classes = None
    if model.classes:
        classes = [Label(c) for c in asked_classes(splits["train"][1], count, len(model.classes))]
    asked = {name: value for name, value in members.told.items() if name != "classes"}
    subject = Subject(model, train, members, held_out, extractor, trained_on, teacher)
    return subject, {"classes": classes, **asked}


def told_to(model: Generator, config: Config, ingest: Artifact, diffusion: Artifact, count: int) -> tuple[Part, Part]:
    """The same images for another model, as that one is told of them."""
    from pipeline.data.split import load_split

    found = []
    for name in ("train", "val"):
        split = load_split(ingest.path, name, config, config.evaluate.seed)
        found.append(_part(model, config, ingest, diffusion, name, split, count)[1])
    n = min(len(part.images) for part in found)
    members, others = (Part(part.images[:n], part.told, part.key) for part in found)
    return members, others


def _part(
    model: Generator, config: Config, ingest: Artifact, diffusion: Artifact, name: str, split: Split, count: int
) -> tuple[Images, Part]:
    """All images of a split, those that are looked at first, and these with what the model is told of them: of a model
    that knows classes those that have one, if any has."""
    from pipeline.data.index import Index
    from pipeline.data.split import split_order
    from pipeline.evaluation.told import conditions_of, told_of

    images, labels = split
    order = np.arange(len(images))
    if model.classes and (labels >= 0).any():
        order = np.concatenate([np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)])
        count = min(count, int((labels >= 0).sum()))
    count = min(count, len(images))
    known = conditions_of(diffusion) if config.diffusion.condition.spatial else None
    told: Mapping[str, Any] = told_of(config, ingest.path, model.options, name, count, known)
    null = len(model.options["classes"])
    classes = [int(c) if c >= 0 else null for c in labels[order[:count]]]
    index = Index.open(ingest.path, name, config.data.cache)
    rows = split_order(ingest.path, name, config, config.evaluate.seed)[0][: len(images)][order]
    whole = images if np.array_equal(order, np.arange(len(images))) else images[order]

    def key(place: int) -> str:
        return index.key(int(rows[place]))

    return whole, Part(whole[:count], {"classes": classes, **told}, key)


def check_reference(reference: Generator, model: Generator, ingest: Artifact, known: list[Artifact]) -> None:
    """UserError for a reference model that is no reference: trained on the same images, or told other things.

    known: artifacts under the root, by which it is seen what it was trained on.
    """
    if "student" in reference.options:
        raise UserError("--reference: is a student, whose answers are no means; give its teacher")
    made_of = {entry["content"] for entry in reference.about.get("lineage", {}).values()}
    for artifact in known:
        if artifact.content in made_of:
            made_of |= {made["content"] for made in artifact.inputs.values()}
    if ingest.content in made_of:
        raise UserError("--reference: was trained on the same images; give a model of others")
    for what in ("condition", "classes"):
        if reference.options[what] != model.options[what]:
            raise UserError(
                f"--reference: is told other things than the model ({what}); give one that is told the same"
            )
    if reference.shapes[0] != model.shapes[0] or reference.channels != model.channels:
        raise UserError("--reference: makes images of another size; give one of the same")


def request_of(model: Generator, told: Mapping[str, Any], count: int, seed: int, **how: Any) -> dict[str, Any]:
    """The request of the samples that are looked at: of unlabelled data no class is told."""
    return model.request(told["classes"], count, seed, **{k: v for k, v in told.items() if k != "classes"}, **how)


def settings(config: Config) -> dict[str, Any]:
    """How an audit in the stage register samples: as the evaluation does."""
    from pipeline.generate.sampling import configured

    return {"batch_size": config.evaluate.batch_size, **configured(config.evaluate)}


def audited(arguments: dict[str, Any]) -> dict[str, Any]:
    """On a worker: audit the model of a config's finished stages, write the files; returns the report.

    arguments: config, inputs (folder by stage), path (where the report goes), parts, threads.
    """
    import torch

    from pipeline.evaluation import audit_report
    from pipeline.evaluation.audit import audit
    from pipeline.files import digest
    from pipeline.generate.folder import from_artifacts

    torch.set_num_threads(arguments["threads"])
    config = Config.model_validate(arguments["config"])
    inputs = {name: Artifact.load(path) for name, path in arguments["inputs"].items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made_of = (inputs["autoencoder"], inputs["encode"], inputs["diffusion"])
    model = from_artifacts(*made_of, device, weights=config.evaluate.weights)
    section = config.evaluate
    check(config, inputs["ingest"], inputs["diffusion"])
    subject, told = subject_of(model, config, inputs["ingest"], inputs["diffusion"], section.samples)
    request = request_of(model, told, section.samples, section.seed, **settings(config))
    key = digest([model.about["weights"], inputs["ingest"].content, subject.extractor.digest, request])[:16]
    report, picture = audit(subject, request, Path(arguments["parts"]) / key)
    audit_report.write(Path(arguments["path"]), report, picture)
    return report
