"""A sweep's file: which config, which keys over which values, what is measured, what is stopped early.

What an element is made of all this is in `pipeline/sweeps/run.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.schema.section import Place, Positive, Section


class Domain(Section):
    """The values of one key: a list (which is `choice`), or one range, ends included."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="These values.")
    uniform: tuple[float, float] | None = Field(None, description="[low, high]: any number between, evenly.")
    log_uniform: tuple[float, float] | None = Field(
        None, description="[low, high], above 0: any number between, evenly by its logarithm."
    )
    integer: tuple[int, int] | None = Field(None, description="[low, high]: any whole number between, evenly.")

    @model_validator(mode="before")
    @classmethod
    def _list(cls, values: Any) -> Any:
        return {"choice": values} if isinstance(values, (list, tuple)) else values

    @model_validator(mode="after")
    def _one(self) -> Domain:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("expected a list of values, or one of uniform, log_uniform, integer: [low, high]")
        if self.bounds and self.bounds[0] >= self.bounds[1]:
            raise ValueError(f"`{given[0]}` {list(self.bounds)}: expected low < high")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError(f"`log_uniform` {list(self.log_uniform)}: expected low above 0")
        return self

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The ends of a range; None for a list."""
        return self.uniform or self.log_uniform or self.integer


class Search(Section):
    kind: Literal["grid", "random", "optuna"] = Field(
        "grid",
        description="All combinations of lists; points drawn at random; or points that Optuna (TPE) chooses by what "
        "earlier ones gave.",
    )
    trials: Positive | None = Field(None, description="With random and optuna: how many points.")
    seed: int = Field(0, ge=0, lt=2**63, description="With random and optuna: of the draws.")
    startup: Positive = Field(10, description="With optuna: points drawn at random before it learns from them.")

    @model_validator(mode="after")
    def _trials_given(self) -> Search:
        if (self.kind == "grid") != (self.trials is None):
            raise ValueError("`trials` is given with random and optuna; a grid has all combinations")
        return self


class Folds(Section):
    """Each point once for each fold: `data.split` with `by: fold`, so that every group is held out exactly once."""

    column: str = Field(description="Column of the data; rows with the same value stay together.")
    k: int = Field(ge=2, description="Folds.")


class Prune(Section):
    """When training of a hopeless element is stopped. Compared are elements of the same fold and seed."""

    kind: Literal["median", "halving"] = Field(
        "median",
        description="At each rung, stopped is who is worse than the median of the others; or who is not among the "
        "best 1/`factor` of all. A point of which one fold or seed is stopped cannot win.",
    )
    metric: str = Field(
        "diffusion/val_loss",
        pattern=r"^(autoencoder|diffusion)/[A-Za-z0-9_]+$",
        description="The validation curve that is looked at.",
    )
    first: Positive = Field(description="The first rung, in samples seen.")
    every: Positive | None = Field(None, description="With `median`: samples between rungs; default: `first`.")
    factor: float = Field(
        3.0, gt=1, description="With `halving`: each rung is so many times the last, and 1/factor of the elements pass."
    )
    least: Positive = Field(
        2, description="With `median`: others, with `halving`: elements, that a rung needs before it stops anybody."
    )


class Sweep(Section):
    """A whole sweep."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,47}$", description="Name of the sweep, and of its runs: NAME.NUMBER."
    )
    config: Place = Field(description="The base config; a relative path begins at this file's folder.")
    overrides: dict[str, Any] = Field({}, description="Config keys (dotted) with values for all elements.")
    keys: dict[str, Domain] = Field(min_length=1, description="Config keys (dotted) that vary, with their values.")
    search: Search = Search()
    seeds: tuple[int, ...] = Field(
        (), description="Each point once for each of these `run.seed`; none: once, with the base's."
    )
    folds: Folds | None = Field(None, description="Each point once for each fold of groups; null: the base's split.")
    metric: str = Field(
        "diffusion/val_loss",
        pattern=r"^(autoencoder|diffusion|eval)/[A-Za-z0-9_]+$",
        description="What decides, by its last value: a figure of the runs, such as diffusion/val_loss or eval/fd.",
    )
    direction: Literal["auto", "min", "max"] = Field("auto", description="Whether less or more of it is better.")
    prune: Prune | None = Field(None, description="Early end of hopeless elements; null: all run to their end.")

    @property
    def metrics(self) -> list[str]:
        """What decides, and the curve that pruning looks at, each once."""
        return list(dict.fromkeys([self.metric, *([self.prune.metric] if self.prune else [])]))

    @model_validator(mode="after")
    def _consistent(self) -> Sweep:
        for key, domain in self.keys.items():
            if self.search.kind == "grid" and domain.choice is None:
                raise ValueError(f"`keys.{key}` is a range, a grid needs lists; give values, or `search.kind: random`")
        ours = ["run.name", "sweep", *(["run.seed"] if self.seeds else []), *(["data.split"] if self.folds else [])]
        for given, kept in ((self.keys, [*ours, "run.root", "tracking"]), (self.overrides, ours)):
            for key in given:
                if any(f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for name in kept):
                    raise ValueError(f"`{key}` is set by the sweep, or common to all its elements; leave it out here")
        both = sorted(set(self.keys) & set(self.overrides))
        if both:
            raise ValueError(f"`{both[0]}` is in `keys` and in `overrides`; leave it in one")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("`seeds` names each seed once")
        return self
