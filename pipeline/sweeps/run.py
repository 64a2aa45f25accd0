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

import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from pipeline.artifacts import Lease, Store
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.past.sweep_folder import STAGE, repeats
from pipeline.stages import graph, precision
from pipeline.sweeps.study import Study, element_config, point_values, repeat_text, shown

# ---- running ---------------------------------------------------------------------------------------------------------


def run(
    study: Study, numbers: Sequence[int], if_busy: Literal["refuse", "wait"] = "refuse", prune: bool = True
) -> list[int]:
    """Bring elements to an end, one after the other; those that have ended are left out, failed ones tried again.

    prune: False: without the rule, and pruned elements go on to their end. Returns the numbers that other processes
    hold. Raises what stops a run (`Stopped`, KeyboardInterrupt); any other error of one element is its result.
    """
    from pipeline.sweeps import report

    study.folder.path.mkdir(parents=True, exist_ok=True)
    write_json(study.folder.path / "sweep.json", study.sweep.model_dump(mode="json"))
    busy = []
    with report.Published(study) as published:
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
    from pipeline.cluster.stopping import Stopped

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
    from pipeline.cluster.cluster import Cluster

    config = element_config(study, number, values, prune)
    with Cluster(config.cluster) as cluster:
        config = graph.absolute(config)
        store = Store(config.run.root)
        store.create()
        config = precision.resolve(config, cluster, keep=True)
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
