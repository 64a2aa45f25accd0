"""Sweeps: one config with many values, element by element, in one process or in many that share `run.root`.

An element is a pipeline run like any other, up to the stage that gives the sweep's metric: what elements have in common
is one artifact, which the first one makes while the others wait for its lease. Which values a point has is `search.py`,
who is stopped early `prune.py`, who has won `sweep_report.py`.

    <root>/sweeps/<name>-<key>/
        sweep.json              the sweep, as it was read
        points/NUMBER.json      with a searcher: the values it chose, in order
        elements/NUMBER/
            place.json          where its stages' artifacts lie (written when it begins)
            rungs/, pruned.json decisions of the rule of `prune`
            result.json         how it ended: finished, pruned or failed; failed ones are tried again
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from pipeline import graph, history, search
from pipeline.artifacts import Lease, Store
from pipeline.compare import LOSS_PARAMS, better
from pipeline.config import Config, Element, check_models, load, load_as, override_value
from pipeline.errors import UserError
from pipeline.files import digest, read_json, write_json
from pipeline.schema.section import result_fields
from pipeline.schema.sweep import Sweep

STAGE = {"autoencoder": "autoencoder", "diffusion": "diffusion", "eval": "evaluate"}  # of a metric's prefix
MOST = 1_000  # elements of a sweep
DRAWS = 8  # points of a searcher that are tried as configs before it begins
HARMLESS = ("data.lanes", "data.balance", "data.loader_workers", "data.cache", "data.on_corrupt", "cluster", "run.seed")


@dataclass(frozen=True)
class Folder:
    """What a sweep's elements leave for each other. Numbers are of elements."""

    path: Path

    def element(self, number: int) -> Path:
        return self.path / "elements" / f"{number:06d}"

    def begun(self) -> list[int]:
        """Elements that have begun."""
        return sorted(int(place.parent.name) for place in self.path.glob("elements/*/place.json"))

    def result(self, number: int) -> dict[str, Any] | None:
        """How an element ended; None if it has not."""
        path = self.element(number) / "result.json"
        return dict(read_json(path)) if path.exists() else None

    def place(self, number: int) -> dict[str, Any]:
        """Where the artifacts of an element that has begun lie (`begin`)."""
        return dict(read_json(self.element(number) / "place.json"))

    def curve(self, number: int, metric: str) -> list[tuple[int, float]]:
        """(samples seen, value) of an element's curve so far; of a figure of `eval/`: at 0."""
        place = self.place(number)
        stage = STAGE[metric.partition("/")[0]]
        points: dict[int, float] = {}
        for event in history.events(sorted((Path(place["folders"][stage]) / "work" / "spool").glob("*.jsonl"))):
            if event["kind"] == "metrics" and isinstance(event["values"].get(metric), float):
                points[event["step"] * place["batch"].get(stage, 1)] = event["values"][metric]
        return sorted(points.items())


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
        return max((STAGE[name.partition("/")[0]] for name in self.sweep.metrics), key=graph.STAGES.index)

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
        if _section_stage(key) > graph.STAGES.index(study.until):
            raise UserError(
                f"{file}: `keys.{key}` has no effect on {' or '.join(sweep.metrics)}, so all elements would be alike; "
                "vary an earlier stage's key, or take a later stage's metric"
            )
    return study


def _section_stage(key: str) -> int:
    """The place of the first stage that a config key may change; 0 where that is not one stage's."""
    stages = {"autoencoder": "autoencoder", "latents": "encode", "diffusion": "diffusion", "evaluate": "evaluate"}
    return graph.STAGES.index(stages.get(key.partition(".")[0], graph.STAGES[0]))


def sign(sweep: Sweep, metric: str) -> int:
    """1 if more of a metric is better, -1 if less is, 0 if that is not known. `direction` is of the sweep's metric."""
    given = {"max": 1, "min": -1}.get(sweep.direction, 0) if metric == sweep.metric else 0
    return given or better(metric)


def _key(sweep: Sweep, base: Config) -> str:
    """Of all that decides on the elements and on how they are compared; more `trials` are the same sweep."""
    from pipeline.data.sources import source_fingerprint
    from pipeline.stages.ingest import cache_folder

    values = sweep.model_dump(mode="json", exclude={"config", "overrides"})
    values["search"].pop("trials")
    fields = result_fields(base)
    fields["run"] = {"seed": base.run.seed}
    made = graph.absolute(base)
    source = source_fingerprint(made.data, cache_folder(made.run.root))
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


def repeats(sweep: Sweep) -> list[dict[str, Any]]:
    """What each point is run with: the folds times the seeds, as overrides."""
    folds: list[dict[str, Any]] = [{}]
    if sweep.folds:
        split = {"by": "fold", "column": sweep.folds.column, "folds": sweep.folds.k}
        folds = [{"data.split": {**split, "fold": fold}} for fold in range(sweep.folds.k)]
    seeds: list[dict[str, Any]] = [{"run.seed": seed} for seed in sweep.seeds] or [{}]
    return [fold | seed for fold, seed in itertools.product(folds, seeds)]


# ---- elements --------------------------------------------------------------------------------------------------------


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


# ---- running ---------------------------------------------------------------------------------------------------------


def run(
    study: Study, numbers: Sequence[int], if_busy: Literal["refuse", "wait"] = "refuse", prune: bool = True
) -> list[int]:
    """Bring elements to an end, one after the other; those that have ended are left out, failed ones tried again.

    prune: False: without the rule, and pruned elements go on to their end. Returns the numbers that other processes
    hold. Raises what stops a run (`Stopped`, KeyboardInterrupt); any other error of one element is its result.
    """
    from pipeline import sweep_report

    study.folder.path.mkdir(parents=True, exist_ok=True)
    write_json(study.folder.path / "sweep.json", study.sweep.model_dump(mode="json"))
    busy = []
    with sweep_report.Published(study) as published:
        for number in numbers:
            with ExitStack() as stack:
                if not to_do(study, number, prune):
                    continue
                try:
                    lease = stack.enter_context(Lease(study.folder.element(number) / "work" / "lease", if_busy))
                except UserError as error:
                    print(f"element {number}: {error}", flush=True)
                    busy.append(number)
                    continue
                if to_do(study, number, prune):  # another process may have done it while we waited
                    run_element(study, number, prune, lease)
                    published.again()
    return busy


def to_do(study: Study, number: int, prune: bool = True) -> bool:
    """Whether an element has still to be run."""
    state = (study.folder.result(number) or {}).get("state")
    return state not in (("finished", "pruned") if prune else ("finished",))


def run_element(study: Study, number: int, prune: bool, lease: Lease) -> None:
    """Run one element and leave its result, unless its lease was lost: then it is another process's to tell."""
    from pipeline.cluster import Stopped

    folder, began = study.folder.element(number), time.monotonic()
    values = point_values(study, number // len(repeats(study.sweep)))
    assert values is not None
    print(f"element {number} of {study.count}: {shown(values)}{repeat_text(study, number)}", flush=True)
    (folder / "pruned.json").unlink(missing_ok=True)
    result: dict[str, Any] = {"values": values}
    stopped: Stopped | None = None
    try:
        config, result["pipeline"] = begin(study, number, values, prune)
        done = graph.run(config, study.until, if_busy="wait")
        result |= _figure(study, number, config)
        result["ran"] = {d.artifact.stage: d.seconds for d in done if not d.cached}
    except Stopped as error:
        if not (folder / "pruned.json").exists():
            raise
        decision = read_json(folder / "pruned.json")
        result |= {"state": "pruned"} | {key: decision[key] for key in ("samples", "value", "why")}
        stopped = error if error.asked else None  # and a person or the scheduler wants an end as well
    except UserError as error:
        result |= {"state": "failed", "why": str(error)}
    except TimeoutError:  # ranks that do not end: nothing can be said of the machines any more
        raise
    except Exception as error:  # a rank that dies again and again, a bug: it does not cost the other elements
        traceback.print_exc()
        result |= {"state": "failed", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    result["seconds"] = time.monotonic() - began
    lease.check()
    write_json(folder / "result.json", result)
    print(f"element {number}: {_ended(study, result)} ({result['seconds']:.0f} s)", flush=True)
    if stopped:
        raise stopped


def begin(study: Study, number: int, values: dict[str, Any], prune: bool) -> tuple[Config, str]:
    """The resolved config of an element, and its pipeline's key. The others are told where its artifacts will lie."""
    from pipeline.cluster import Cluster

    config = element_config(study, number, values, prune)
    with Cluster(config.cluster) as cluster:
        config = graph.resolve(graph.absolute(config), cluster)
    store = Store(config.run.root)
    steps = graph.plan(config, store, study.until)
    folders = {s.stage: str(s.artifact.path if s.artifact else store.folder(s.stage, s.fingerprint)) for s in steps}
    batch = {stage: getattr(config, stage).training.batch_size for stage in ("autoencoder", "diffusion")}
    write_json(study.folder.element(number) / "place.json", {"folders": folders, "batch": batch})
    return config, graph.pipeline_key(config, steps)


def _figure(study: Study, number: int, config: Config) -> dict[str, Any]:
    """The sweep's metric of a finished element, with its own interval and conditions where it has any."""
    metric = study.sweep.metric
    stage = STAGE[metric.partition("/")[0]]
    curve = study.folder.curve(number, metric)
    training = getattr(getattr(config, stage), "training", None)
    if not curve or (training and curve[-1][0] != training.steps * training.batch_size):
        return {"state": "failed", "why": f"at its end it has no finite figure {metric} (the sweep's `metric`)"}
    found: dict[str, Any] = {"state": "finished", "value": curve[-1][1]}
    report = Path(study.folder.place(number)["folders"][stage]) / "report.json"
    if stage == "evaluate" and report.exists():
        told = read_json(report)
        found["conditions"] = told.get("conditions")
        kind = {"eval/fd": "frechet", "eval/kd": "kernel"}.get(metric)
        if kind and "samples" in told.get(kind, {}):
            found["interval"] = list(told[kind]["samples"]["interval"])
    return found


def _ended(study: Study, result: dict[str, Any]) -> str:
    if result["state"] == "finished":
        return f"{study.sweep.metric} {result['value']:.6g}"
    if result["state"] == "pruned":
        return f"pruned at {result['samples']:,} samples ({result['why']})"
    return f"failed: {result['why']}"


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
