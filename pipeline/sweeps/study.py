"""A sweep that was read and checked: which elements it has, and which values and config each."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.artifacts import Lease
from pipeline.config import Config, Element, load, load_as, override_value
from pipeline.errors import UserError
from pipeline.files import digest, read_json, write_json
from pipeline.past.compare import LOSS_PARAMS
from pipeline.past.sweep_folder import STAGE, Folder, repeats, sign
from pipeline.planning.fits import check_models
from pipeline.schema.names import STAGES
from pipeline.schema.section import result_fields
from pipeline.schema.sweep import Sweep
from pipeline.stages import graph
from pipeline.sweeps import search

MOST = 1_000  # elements of a sweep
DRAWS = 8  # points of a searcher that are tried as configs before it begins
HARMLESS = ("data.lanes", "data.balance", "data.loader_workers", "data.cache", "data.on_corrupt", "cluster", "run.seed")


@dataclass(frozen=True)
class Study:
    """A sweep that was read and checked. overrides: common to all elements, as `ldm run` takes them."""

    file: Path
    sweep: Sweep
    base: Config
    overrides: tuple[str, ...]
    key: str

    @property
    def root(self) -> Path:
        return Path(self.base.run.root).absolute()

    @property
    def folder(self) -> Folder:
        return Folder(self.root / "sweeps" / f"{self.sweep.name}-{self.key}")

    @property
    def config_path(self) -> Path:
        return Path(os.path.normpath(self.file.parent / self.sweep.config))

    @property
    def until(self) -> str:
        """The last stage of an element."""
        return max((STAGE[name.partition("/")[0]] for name in self.sweep.metrics), key=STAGES.index)

    @property
    def count(self) -> int:
        """Elements: points times folds times seeds."""
        return search.count(self.sweep) * len(repeats(self.sweep))


def read(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a sweep's file; `overrides` (KEY=VALUE of the config) are common to all elements. Raises UserError."""
    file = Path(path)
    given = load_as(Sweep, file)
    common = given.overrides | dict(override_value(text) for text in overrides)
    try:
        sweep = Sweep.model_validate(given.model_dump() | {"overrides": common})
    except ValidationError as error:  # what the file has is right: it is the command line
        raise UserError(f"{file}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    for metric in sweep.metrics:
        for key in sweep.keys:
            reason = incomparable(metric, key)
            if reason:
                raise UserError(f"{file}: `keys.{key}`: {metric} does not mean the same in all elements: {reason}")
        if not sign(sweep, metric):
            remedy = "give `direction: min` or max" if metric == sweep.metric else "prune by another curve"
            raise UserError(f"{file}: {metric}: is more of it better, or less? It is not known here; {remedy}")
    texts = tuple(as_override(*pair) for pair in sweep.overrides.items())
    base = load(file.parent / sweep.config, texts)
    study = Study(file, sweep, base, texts, _key(sweep, base))
    if study.count > MOST:
        raise UserError(f"{file}: {study.count:,} elements; at most {MOST:,} are taken")
    for key in sweep.keys:
        if _section_stage(key) > STAGES.index(study.until):
            raise UserError(
                f"{file}: `keys.{key}` has no effect on {' or '.join(sweep.metrics)}, so all elements would be alike; "
                "vary an earlier stage's key, or take a later stage's metric"
            )
    return study


def _section_stage(key: str) -> int:
    """The place of the first stage that a config key may change; 0 where that is not one stage's."""
    stages = {"autoencoder": "autoencoder", "latents": "encode", "diffusion": "diffusion", "evaluate": "evaluate"}
    return STAGES.index(stages.get(key.partition(".")[0], STAGES[0]))


def _key(sweep: Sweep, base: Config) -> str:
    """Of all that decides on the elements and on how they are compared; more `trials` are the same sweep."""
    from pipeline.data.sources import digests_folder_of, source_fingerprint

    values = sweep.model_dump(mode="json", exclude={"config", "overrides"})
    values["search"].pop("trials")
    fields = result_fields(base)
    fields["run"] = {"seed": base.run.seed}
    made = graph.absolute(base)
    source = source_fingerprint(made.data, digests_folder_of(made.run.root))
    return digest([values, fields, source])[:12]


def as_override(key: str, value: Any) -> str:
    """`KEY=VALUE` as the command line takes it (JSON is YAML)."""
    return f"{key}={json.dumps(value, default=str)}"  # a date of YAML


def incomparable(metric: str, key: str) -> str | None:
    """Why a metric is another quantity if `key` varies, or None."""

    def under(*names: str) -> bool:
        return any(key == name.rstrip(".") or key.startswith(f"{name.rstrip('.')}.") for name in names)

    stage, _, word = metric.partition("/")
    if under(*HARMLESS):
        return None
    if under("data"):
        return "the images are others (compare such runs by `ldm compare`)"
    if stage == "diffusion" and "fd" not in word.split("_"):
        if under("autoencoder", "latents"):
            return "it is measured on the latents of another autoencoder; take `metric: eval/fd`"
        if under(*LOSS_PARAMS):
            return "the loss is another; take `metric: eval/fd`"
    if stage == "autoencoder" and word not in ("val_psnr", "val_ssim") and under("autoencoder.loss"):
        return "the loss is another; take `metric: autoencoder/val_psnr`"
    if stage == "eval" and under("evaluate.samples", "evaluate.extractor", "evaluate.seed"):
        return "it depends on the number of images and on the extractor"
    return None


def point_values(study: Study, point: int, may_ask: bool = True) -> dict[str, Any] | None:
    """The values of a point; with a searcher None where it has not chosen yet and is not to be asked."""
    if study.sweep.search.kind != "optuna":
        return search.values(study.sweep, point)
    path = study.folder.path / "points"
    wanted = path / f"{point:06d}.json"
    if wanted.exists() or not may_ask:
        return dict(read_json(wanted)) if wanted.exists() else None
    with Lease(path / "work" / "lease", "wait"):  # one asks at a time; those before come first
        for before in range(point + 1):
            file = path / f"{before:06d}.json"
            if not file.exists():
                write_json(file, search.ask(study.sweep, [_told(study, n) for n in range(before)]))
    return dict(read_json(wanted))


def _told(study: Study, point: int) -> search.Told:
    """What the searcher is told of a point: its mean over folds and seeds once all are there."""
    values = dict(read_json(study.folder.path / "points" / f"{point:06d}.json"))
    each = len(repeats(study.sweep))
    numbers = range(point * each, (point + 1) * each)
    results = [result for number in numbers if (result := study.folder.result(number))]
    states, worth = {result["state"] for result in results}, sign(study.sweep, study.sweep.metric)
    if "failed" in states:
        return search.Told(values, "bad")
    if "pruned" in states:
        pruned = next(result for result in results if result["state"] == "pruned")
        same = study.sweep.prune is not None and study.sweep.prune.metric == study.sweep.metric
        curve = [(pruned["samples"], -worth * pruned["value"])] if same else []
        return search.Told(values, "bad", curve=curve)
    if len(results) < each:
        return search.Told(values, "running")
    mean = math.fsum(result["value"] for result in results) / each
    return search.Told(values, "finished", -worth * mean)


def element_overrides(study: Study, number: int, values: dict[str, Any]) -> list[str]:
    """What makes an element of the base config."""
    repeat = repeats(study.sweep)[number % len(repeats(study.sweep))]
    own = {**values, **repeat, "run.name": f"{study.sweep.name}.{number}"}
    return [*study.overrides, *(as_override(*pair) for pair in own.items())]


def element_config(study: Study, number: int, values: dict[str, Any], prune: bool = True) -> Config:
    """The config of an element. Raises UserError naming the element."""
    try:
        config = load(study.config_path, element_overrides(study, number, values))
        check_models(config)
    except UserError as error:
        raise UserError(f"{study.file}: element {number}: {error}") from None
    pruned = prune and study.sweep.prune is not None
    element = Element(key=study.key, folder=str(study.folder.path), number=number, prune=pruned)
    return config.model_copy(update={"sweep": element})


def check(study: Study, numbers: Iterable[int]) -> None:
    """Check the configs of elements, as far as they are known before anything runs. UserError for the first mistake."""
    each = len(repeats(study.sweep))
    if study.sweep.search.kind != "optuna":
        for number in numbers:
            element_config(study, number, search.values(study.sweep, number // each))
        return
    mistakes = []  # what will be asked for is not known; what is wrong with all that could be is a mistake in a key
    for draw in range(DRAWS):
        try:
            element_config(study, 0, search.values(study.sweep, draw))
            return
        except UserError as error:
            mistakes.append(error)
    raise mistakes[0]


def shown(values: dict[str, Any]) -> str:
    """Values in a few words: the last part of each key, all of it where two end alike."""
    ends = [key.rpartition(".")[2] for key in values]
    names = [end if ends.count(end) == 1 else key for key, end in zip(values, ends, strict=True)]
    return ", ".join(f"{name} {value}" for name, value in zip(names, values.values(), strict=True))


def repeat_text(study: Study, number: int) -> str:
    """The fold and seed of an element, in words; empty if there is one of each only."""
    repeat = repeats(study.sweep)[number % len(repeats(study.sweep))]
    parts = [f"fold {repeat['data.split']['fold']}"] if "data.split" in repeat else []
    parts += [f"seed {repeat['run.seed']}"] if "run.seed" in repeat else []
    return f" ({', '.join(parts)})" if parts else ""
