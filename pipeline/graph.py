"""The graph of stages: what each takes, what is cached, what runs, in which order, and the table at the end.

A stage is a module in `stages/` with INPUTS (names of earlier stages), `recipe(config)`, `run(config, inputs, writer,
cluster, spool)` and `headline(summary)`. A fingerprint follows from recipes alone, so the whole plan is known before
anything runs.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from pipeline import artifacts
from pipeline.artifacts import Artifact, Store, Writer
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import digest

STAGES = ("ingest", "autoencoder", "encode", "diffusion", "evaluate", "register")


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
        return str(module(self.artifact.stage).headline(self.artifact.summary))


def module(stage: str) -> ModuleType:
    """The module of a stage."""
    return importlib.import_module(f"pipeline.stages.{stage}")


def plan(config: Config, store: Store, until: str = STAGES[-1]) -> list[Step]:
    """The stages up to `until` with their fingerprints and what is finished of them. Runs nothing."""
    steps: dict[str, Step] = {}
    known: dict[str, str] = {}
    for stage in STAGES[: STAGES.index(until) + 1]:
        if stage == "autoencoder" and config.autoencoder.from_:
            pinned = Artifact.load(config.autoencoder.from_, stage)
            steps[stage], known[stage] = Step(stage, pinned.fingerprint, pinned.recipe, pinned), pinned.fingerprint
            continue
        recipe = module(stage).recipe(config) if stage != "ingest" else module(stage).recipe(config, store.root)
        inputs = {name: known[name] for name in module(stage).INPUTS}
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
    from pipeline.cluster import Cluster
    from pipeline.runs import PipelineRun

    store = Store(config.run.root)
    store.create()
    config = resolve(config)
    for step in plan(config, store, until):
        if step.stage in rebuild and step.artifact:
            print(f"{step.stage}: set aside as {store.set_aside(step.artifact)}", flush=True)
    steps = plan(config, store, until)
    last = steps[-1].stage
    done: dict[str, Done] = {}
    key = digest([config.run.name, [step.fingerprint for step in steps]])[:16]
    all_cached = all(step.artifact for step in steps)
    with PipelineRun(config, store.root, key, all_cached) as tracked, Cluster(config.cluster) as cluster:
        for step in steps:
            begun = time.monotonic()
            inputs = {name: done[name].artifact for name in module(step.stage).INPUTS}
            if step.artifact:
                if step.artifact.stage != "autoencoder" or not config.autoencoder.from_:
                    artifacts.check_inputs(step.artifact, inputs)
                done[step.stage] = Done(step.artifact, True, time.monotonic() - begun)
                tracked.cached(step.stage, step.artifact, done[step.stage].headline)
                continue
            if "ingest" in done and STAGES.index(last) >= STAGES.index("diffusion"):
                check_condition(config, done["ingest"].artifact)
            print(f"{step.stage}: {step.fingerprint}", flush=True)
            with store.write(step.stage, step.fingerprint, step.recipe, inputs, if_busy) as writer:
                artifact = _run_stage(step.stage, config, inputs, writer, cluster, tracked)
            done[step.stage] = Done(artifact, False, time.monotonic() - begun)
            tracked.finished(step.stage, artifact, done[step.stage].seconds, done[step.stage].headline)
            print(f"{step.stage}: {done[step.stage].headline} ({done[step.stage].seconds:.0f} s)", flush=True)
    return list(done.values())


def _run_stage(
    stage: str, config: Config, inputs: dict[str, Artifact], writer: Writer, cluster: Any, tracked: Any
) -> Artifact:
    finished = Store(config.run.root).find(stage, writer.fingerprint)  # by another process, while we waited
    if finished:
        return finished
    training = getattr(getattr(config, stage, None), "training", None)
    steps = training.steps if training else None
    with tracked.stage(stage, writer, steps) as spool:
        summary = module(stage).run(config, inputs, writer, cluster, spool)
        return writer.finish(summary)


def check_condition(config: Config, data: Artifact) -> None:
    """Refuse a class condition on images without classes: before the autoencoder is trained, not after."""
    if config.diffusion.condition.kind == "class" and not data.summary["classes"]:
        raise UserError(
            f"`diffusion.condition.kind` is class, but the images of {data.name} have no classes; set it to none, or "
            "give labels (`data.source`)"
        )


def resolve(config: Config) -> Config:
    """Put values in place of `auto` where a result depends on them (precision), so that they are in the fingerprint."""
    if all(s.training.precision != "auto" for s in (config.autoencoder, config.diffusion)):
        return config
    import torch

    kind = "fp32"
    if torch.cuda.is_available():
        kind = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    values = config.model_dump(by_alias=True)
    for name in ("autoencoder", "diffusion"):
        if values[name]["training"]["precision"] == "auto":
            values[name]["training"]["precision"] = "fp32" if (name, kind) == ("autoencoder", "fp16") else kind
    return Config.model_validate(values)
