"""The graph of stages: what each takes, what is cached, what runs, in which order, and the table at the end.

`ldm run` comes here by `jobs/train_ldm.py` and `jobs/common.py`. A stage is a module in `stages/` with
`recipe(config)`, `run(config, inputs, writer, cluster, spool)` and `headline(summary)`; its name and what it takes are
in `schema/names.py`. A fingerprint follows from recipes alone, so the whole plan is known before anything runs.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pipeline import artifacts
from pipeline.artifacts import Artifact, Store, Writer
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import digest
from pipeline.schema.names import INPUTS, STAGES
from pipeline.stages import precision

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster


@dataclass(frozen=True)
class Step:
    """A stage of a plan: what it would be called, and the finished artifact if there is one."""

    stage: str
    fingerprint: str
    recipe: dict[str, Any]
    artifact: Artifact | None


@dataclass(frozen=True)
class Done:
    """A stage of a run that has ended: its artifact, whether it was cached, and the seconds it took."""

    artifact: Artifact
    cached: bool
    seconds: float

    @property
    def headline(self) -> str:
        return headline(self.artifact)


def module(stage: str) -> ModuleType:
    """The module of a stage."""
    return importlib.import_module(f"pipeline.stages.{stage}")


def headline(artifact: Artifact) -> str:
    """The verdict of a finished stage in one line."""
    return str(module(artifact.stage).headline(artifact.summary))


def plan(config: Config, store: Store, until: str = STAGES[-1]) -> list[Step]:
    """The stages up to `until` with their fingerprints and what is finished of them. Runs nothing."""
    if until not in config.stages:
        raise UserError(
            f"{until}: this config names neither attributes nor captions nor pictures (`diffusion.condition`)"
        )
    steps: dict[str, Step] = {}
    known: dict[str, str] = {}
    for stage in config.stages[: config.stages.index(until) + 1]:
        if stage == "autoencoder" and config.autoencoder.from_:
            pinned = Artifact.load(config.autoencoder.from_, stage)
            steps[stage], known[stage] = Step(stage, pinned.fingerprint, pinned.recipe, pinned), pinned.fingerprint
            continue
        recipe = module(stage).recipe(config) if stage != "ingest" else module(stage).recipe(config, store.root)
        inputs = {name: known[name] for name in INPUTS[stage] if name in known}
        known[stage] = artifacts.fingerprint(stage, recipe, inputs)
        steps[stage] = Step(stage, known[stage], recipe, store.find(stage, known[stage]))
    return list(steps.values())


def run(
    config: Config,
    until: str = STAGES[-1],
    rebuild: Sequence[str] = (),
    if_busy: Literal["refuse", "wait"] = "refuse",
) -> list[Done]:
    """Bring every stage up to `until` to an end, leaving out what is finished; returns what was done.

    `rebuild` names stages whose artifact is set aside first. Raises UserError for a user's mistake.
    """
    from pipeline.cluster.cluster import Cluster

    config = absolute(config)
    store = Store(config.run.root)
    store.create()
    if "autoencoder" in rebuild and config.autoencoder.from_:
        raise UserError("--rebuild autoencoder: it is pinned by `autoencoder.from`; leave one of them out")
    with Cluster(config.cluster) as cluster:
        config = precision.resolve(config, cluster, keep=True)
        steps = plan(config, store, until)
        precision.check_precision(config, cluster, [step.stage for step in steps if not step.artifact])
        for step in steps:
            if step.stage in rebuild and step.artifact:
                print(f"{step.stage}: set aside as {store.set_aside(step.artifact)}", flush=True)
        return _run(config, store, cluster, until, if_busy)


def _run(config: Config, store: Store, cluster: Cluster, until: str, if_busy: Literal["refuse", "wait"]) -> list[Done]:
    from pipeline.tracking.runs import PipelineRun

    steps = plan(config, store, until)
    last = steps[-1].stage
    done: dict[str, Done] = {}
    key = pipeline_key(config, steps)
    all_cached = all(step.artifact for step in steps)
    with PipelineRun(config, store.root, key, all_cached, if_busy) as tracked:
        for step in steps:
            begun = time.monotonic()
            inputs = {name: done[name].artifact for name in INPUTS[step.stage] if name in done}
            found = step.artifact
            if not found:
                if "ingest" in done and STAGES.index(last) >= STAGES.index("diffusion"):
                    check_condition(config, done["ingest"].artifact)
                if "ingest" in done and STAGES.index(last) >= STAGES.index("evaluate"):
                    check_agreement(config, done["ingest"].artifact)
                if "ingest" in done and last == "register":
                    check_gate(config, done["ingest"].artifact)
                if "ingest" in done:
                    check_buckets(config, done["ingest"].artifact)
                print(f"{step.stage}: {step.fingerprint}", flush=True)
                with store.write(step.stage, step.fingerprint, step.recipe, inputs, if_busy) as writer:
                    found = store.find(step.stage, step.fingerprint)  # made by another process while we waited
                    made = found or _run_stage(step.stage, config, inputs, writer, cluster, tracked)
            if found:
                if found.stage != "autoencoder" or not config.autoencoder.from_:
                    artifacts.check_inputs(found, inputs)
                done[step.stage] = Done(found, True, time.monotonic() - begun)
                tracked.cached(step.stage, found, done[step.stage].headline)
                continue
            done[step.stage] = Done(made, False, time.monotonic() - begun)
            tracked.finished(step.stage, made, done[step.stage].seconds, done[step.stage].headline)
            print(f"{step.stage}: {done[step.stage].headline} ({done[step.stage].seconds:.0f} s)", flush=True)
    return list(done.values())


def pipeline_key(config: Config, steps: Sequence[Step]) -> str:
    """The pipeline's own fingerprint: its name, what its stages are, and the sweep that it is part of."""
    sweep = [config.sweep.key] if config.sweep else []
    return digest([config.run.name, [step.fingerprint for step in steps], *sweep])[:16]


def _run_stage(
    stage: str, config: Config, inputs: dict[str, Artifact], writer: Writer, cluster: Cluster, tracked: Any
) -> Artifact:
    training = getattr(getattr(config, stage, None), "training", None)
    steps = training.steps if training else None
    with tracked.stage(stage, writer, steps) as spool:
        summary = module(stage).run(config, inputs, writer, cluster, spool)
        return writer.finish({**summary, "run": spool.run})


def check_condition(config: Config, data: Artifact) -> None:
    """Refuse a class condition on images without classes: before the autoencoder is trained, not after."""
    if config.diffusion.condition.kind == "class" and not data.summary["classes"]:
        raise UserError(
            f"`diffusion.condition.kind` is class, but the images of {data.name} have no classes; set it to none, or "
            "give labels (`data.source`)"
        )


def check_agreement(config: Config, data: Artifact) -> None:
    """Refuse columns that evaluation cannot judge: before anything is trained, not after."""
    from pipeline.evaluation.agreement import columns_of
    from pipeline.evaluation.told import metas_of
    from pipeline.stages.conditions import asked

    section = config.evaluate.agreement
    if section and section.columns:
        metas = metas_of(config, data.path, "train")
        columns_of(section.columns, metas, asked(config)["attributes"], "`evaluate.agreement.columns`")


def check_gate(config: Config, data: Artifact) -> None:
    """Refuse what an audit can say nothing of: before anything is trained, not after."""
    from pipeline.evaluation.audit import LEAST
    from pipeline.evaluation.audit_data import teacher_file
    from pipeline.tasks.begin import training_recipe

    few = [f"{count} {split}" for split, count in data.summary["images"].items() if count < LEAST]
    if config.register_.gate and few:
        raise UserError(
            f"`register.gate`: {' and '.join(few)} images, {LEAST} of either split at least are needed; change "
            "`data.split`, give more images, or leave the gate out"
        )
    if config.register_.gate and config.diffusion.distil:
        teacher_file(config, data, training_recipe(config, "diffusion")["init_from"])


def check_buckets(config: Config, data: Artifact) -> None:
    """Refuse a bucket with too few images for either training: before the autoencoder is trained, not after."""
    from pipeline.data.buckets import check_filled
    from pipeline.data.order import lanes

    rows = data.summary.get("buckets", [])
    for training in (config.autoencoder.training, config.diffusion.training):
        if rows:
            train, held_out = ([row[split] for row in rows] for split in ("train", "val"))
            check_filled(config.data.shapes, train, held_out, config.data.lanes or lanes(training.batch_size))


def absolute(config: Config) -> Config:
    """Every local path as seen from here: workers may run in another folder.

    UserError for a relative root in a Ray job, which runs in a copy of the sources that is removed after it.
    """
    from pipeline.cluster.joining import in_ray_job

    if in_ray_job() and not Path(config.run.root).is_absolute():
        raise UserError(
            f"`run.root`: {config.run.root} would lie in a Ray job's own copy of the sources, which is removed; "
            "give an absolute path on storage that all nodes share"
        )
    values = config.model_dump(by_alias=True)
    places = [(values["run"], "root"), (values["autoencoder"], "from"), (values["data"]["cache"], "path")]
    places.append((values["data"], "leave_out"))
    if config.evaluate.weights.endswith(".safetensors"):
        places.append((values["evaluate"], "weights"))
    places += [(values["data"]["source"], key) for key in ("path", "val", "classes", "labels", "class_names")]
    places += [(values["autoencoder"]["loss"]["perceptual"], key) for key in ("path", "heads")]
    places += [(values["evaluate"]["extractor"], "path")]
    if config.diffusion.align and config.diffusion.align.teacher != "self":
        places.append((values["diffusion"]["align"], "teacher"))
    places += [((values["diffusion"]["condition"]["caption"] or {}).get("encoder", {}), "path")]
    for section, key in places:
        if isinstance(section.get(key), str) and section[key] and "://" not in section[key]:
            section[key] = str(Path(section[key]).absolute())
    return Config.model_validate(values)
