"""`ldm sweep --dry-run`: which elements there are, what they share, what is cached, and what it will take."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from pipeline.artifacts import Store
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.past import sweep_folder
from pipeline.planning.fits import check_models
from pipeline.planning.forecast import GIGABYTE, kept_bytes
from pipeline.schema.names import STAGES
from pipeline.stages import graph, precision
from pipeline.sweeps import run
from pipeline.sweeps.study import Study, element_config, point_values, repeat_text, shown
from pipeline.training.prune import rung_of


def plan(study: Study) -> str:
    """The dry run's text. Runs nothing, trains nothing. Raises UserError as the sweep would."""
    from pipeline.cluster.cluster import Cluster

    each = len(sweep_folder.repeats(study.sweep))
    known = {n: v for n in range(study.count) if (v := point_values(study, n // each, may_ask=False)) is not None}
    store, lines = Store(study.root), [f"sweep {study.sweep.name}: {study.count} elements in {study.folder.path}"]
    users: dict[tuple[str, str], list[int]] = defaultdict(list)
    steps: dict[tuple[str, str], graph.Step] = {}
    configs: dict[tuple[str, str], Config] = {}
    with Cluster(study.base.cluster) as cluster:
        for number, values in known.items():
            who = f"element {number}: {shown(values)}{repeat_text(study, number)}"
            lines.append(f"{who}{_state(study, number)}")
            try:
                config = precision.resolve(graph.absolute(element_config(study, number, values)), cluster)
            except UserError:
                if (
                    study.sweep.search.kind == "optuna"
                ):  # it has chosen what is no config: this one fails, others need not
                    continue
                raise
            for step in graph.plan(config, store, study.until):
                made = (step.stage, step.fingerprint)
                users[made].append(number)
                steps[made], configs[made] = step, config
    if len(known) < study.count:
        lines.append(
            f"elements {len(known)} to {study.count - 1}: chosen by {study.sweep.search.kind}, as results come"
        )
    for stage in STAGES[: STAGES.index(study.until) + 1]:
        lines += [_stage_line(steps[made], users[made]) for made in users if made[0] == stage]
    lines += _rungs(study, list(configs.values()))
    lines.append(f"disk: {_disk(configs, steps)}")
    return "\n".join([*lines, *_time(study)])


def _state(study: Study, number: int) -> str:
    result: dict[str, Any] | None = study.folder.result(number)
    return f" ({result['state']})" if result else ""


def _stage_line(step: graph.Step, users: list[int]) -> str:
    state = "cached" if step.artifact else "would run"
    who = f"shared by {len(users)} elements" if len(users) > 1 else f"of element {users[0]}"
    return f"{step.stage} {step.fingerprint}: {state}, {who}"


def _rungs(study: Study, configs: list[Config]) -> list[str]:
    """At how many rungs the element with most of them is looked at; says so if that is never."""
    rule = study.sweep.prune
    if not rule or not configs:
        return []
    stage, most = sweep_folder.STAGE[rule.metric.partition("/")[0]], set[int]()
    for training in (getattr(config, stage).training for config in configs):
        validated = range(training.validate_every, training.steps, training.validate_every)
        found = {rung_of(rule, step * training.batch_size) for step in validated}
        most = max(most, {rung for rung in found if rung}, key=len)
    if not most:
        return [f"pruning: never, since no validation before the end lies at {rule.first:,} samples or later"]
    return [f"pruning: by {rule.metric} at {len(most)} rungs, from {min(most):,} samples on"]


def _disk(configs: dict[tuple[str, str], Config], steps: dict[tuple[str, str], graph.Step]) -> str:
    """Checkpoints and weights of what would be trained, each artifact once; latents and shards come beside them."""
    todo = [made for made, step in steps.items() if not step.artifact and made[0] in ("autoencoder", "diffusion")]
    total = sum(_bytes(configs[made], made[0]) for made in todo)
    return f"{total / GIGABYTE:.2f} GB for checkpoints and weights of {len(todo)} trainings"


def _bytes(config: Config, stage: str) -> int:
    from models import registry
    from models.patches import size_of

    channels, sides = check_models(config)
    if stage == "autoencoder":
        parameters = registry.parameters("autoencoders", config.autoencoder.model, channels=config.data.channels)
        return kept_bytes(config.autoencoder.training, parameters)
    parameters = registry.parameters("backbones", config.diffusion.backbone, channels=channels, size=size_of(sides))
    return kept_bytes(config.diffusion.training, parameters)


def _time(study: Study) -> list[str]:
    """What the elements that have finished say of those that have not."""
    ended = [r for n in range(study.count) if (r := study.folder.result(n))]
    took = [sum(result["ran"].values()) for result in ended if result.get("ran")]
    left = sum(run.to_do(study, n) for n in range(study.count))
    if not took or not left:
        return []
    middle = statistics.median(took)
    return [
        f"time: {left} elements to go, {middle:.0f} s each (median of {len(took)}): {left * middle / 60:.0f} minutes"
    ]
