"""Which values the points of a sweep have: all combinations, draws at random, or what a searcher makes of earlier ones.

Grid and random are pure functions of (sweep, number). The searcher (Optuna's TPE) has no state but what the caller
hands in: the points asked for so far and what came of them. Where these are kept is `sweep.py`'s business.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import UserError
from pipeline.files import digest
from pipeline.schema.sweep import Domain, Sweep

DIGITS = 6  # of a drawn number: enough to tell points apart, few enough to read and to type


@dataclass(frozen=True)
class Told:
    """What is known of a point: its values; `value`, lower is better, if it is finished; how far it came if bad."""

    values: Mapping[str, Any]
    state: Literal["running", "finished", "bad"]
    value: float | None = None
    curve: Sequence[tuple[int, float]] = ()  # (samples, value), of one that was pruned


def count(sweep: Sweep) -> int:
    """How many points there are."""
    if sweep.search.trials is not None:
        return sweep.search.trials
    return math.prod(len(domain.choice or ()) for domain in sweep.keys.values())


def values(sweep: Sweep, point: int) -> dict[str, Any]:
    """The values of a point of a grid (the last key varies fastest) or of a random search, by key."""
    if sweep.search.kind == "grid":
        lists = [domain.choice or () for domain in sweep.keys.values()]
        return dict(zip(sweep.keys, next(itertools.islice(itertools.product(*lists), point, None)), strict=True))
    return {key: draw(domain, unit(sweep.search.seed, point, key)) for key, domain in sweep.keys.items()}


def unit(seed: int, point: int, key: str) -> float:
    """A number in [0, 1) that follows from its arguments: another key or point changes no other's."""
    hashed = hashlib.sha256(f"{seed}/{point}/{key}".encode()).digest()
    return float(int.from_bytes(hashed[:8], "big") >> 11) / 2.0**53


def draw(domain: Domain, at: float) -> Any:
    """The value of a domain at `at` in [0, 1): the inverse of its distribution function."""
    if domain.choice is not None:
        return domain.choice[int(at * len(domain.choice))]
    if domain.integer:
        first, last = domain.integer
        return first + int(at * (last - first + 1))
    if domain.log_uniform:
        low, high = domain.log_uniform
        return _rounded(math.exp(math.log(low) + at * (math.log(high) - math.log(low))), low, high)
    low, high = domain.uniform or (0.0, 0.0)
    return _rounded(low + at * (high - low), low, high)


def _rounded(value: float, low: float, high: float) -> float:
    return min(high, max(low, float(f"{value:.{DIGITS}g}")))


# ---- the searcher ----------------------------------------------------------------------------------------------------


def ask(sweep: Sweep, told: Sequence[Told]) -> dict[str, Any]:
    """The values of the point after those that are told, by Optuna's TPE; the same again for the same `told`.

    A point that still runs counts as a bad one where it lies, so that two processes do not try the same; so does one
    that failed, else a learning rate at which training bursts would be asked for again and again. Raises UserError
    where Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError(
            "`search.kind: optuna` needs Optuna: pip install optuna (the extra `sweep`), or take grid or random"
        ) from None

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int(digest([sweep.search.seed, len(told)])[:8], 16)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=sweep.search.startup, constant_liar=True)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    distributions = {key: _distribution(domain) for key, domain in sweep.keys.items()}
    states = {"running": "RUNNING", "finished": "COMPLETE", "bad": "PRUNED"}  # FAIL is what TPE does not look at
    for point in told:
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[states[point.state]],
                params={key: _to(sweep.keys[key], value) for key, value in point.values.items()},
                distributions=distributions,
                value=point.value if point.state == "finished" else None,
                intermediate_values=dict(point.curve),
            )
        )
    params = study.ask(distributions).params
    return {key: _from(domain, params[key]) for key, domain in sweep.keys.items()}


def _distribution(domain: Domain) -> Any:
    from optuna import distributions as known

    if domain.choice is not None:  # by place: a value may be a list
        return known.CategoricalDistribution(tuple(range(len(domain.choice))))
    if domain.integer:
        return known.IntDistribution(*domain.integer)
    if domain.log_uniform:
        return known.FloatDistribution(*domain.log_uniform, log=True)
    return known.FloatDistribution(*(domain.uniform or (0.0, 0.0)))


def _to(domain: Domain, value: Any) -> Any:
    return domain.choice.index(value) if domain.choice is not None else value


def _from(domain: Domain, value: Any) -> Any:
    if domain.choice is not None:
        return domain.choice[value]
    return value if domain.integer else _rounded(value, *(domain.bounds or (value, value)))
