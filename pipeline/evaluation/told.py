"""What the images of a split are told besides their class, in the order in which evaluation takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, check_inputs
from pipeline.config import Config


def told_of(
    config: Config,
    data: Path,
    options: Mapping[str, Any],
    split: str,
    count: int,
    conditions: Artifact | None = None,
) -> dict[str, Any]:
    """Prompts, attributes, maps of the first `count` images of a split in the order of `split_order`, as arguments of
    `Generator.request`; empty for a model that knows none. options: the model's; conditions: where its maps are."""
    from pipeline.data.condition_pool import maps_of
    from pipeline.data.split import split_order
    from pipeline.generate.told import of_samples

    if not config.diffusion.condition.columns:
        return {}
    told = of_samples(options, metas_of(config, data, split, count))
    if conditions is None:
        return told
    rows = split_order(data, split, config, config.evaluate.seed)[0][:count]
    maps = maps_of(conditions, split, [int(i) for i in rows])
    return {**told, **({"maps": maps} if maps else {})}


def metas_of(config: Config, data: Path, split: str, count: int | None = None) -> list[dict[str, Any]]:
    """The columns of the first `count` images of a split in the order of `split_order`."""
    from pipeline.data.condition_shards import columns_of
    from pipeline.data.index import Index
    from pipeline.data.split import split_order

    index = Index.open(data, split, config.data.cache)
    rows = split_order(data, split, config, config.evaluate.seed)[0]
    return [columns_of(index, int(i), label_of(config)) for i in rows[:count]]


def label_of(config: Config) -> str:
    """The name of the column that is the class."""
    return getattr(config.data.source, "label", None) or "class"


def conditions_of(diffusion: Artifact) -> Artifact | None:
    """What a model was told in training; None where that was nothing but classes."""
    if "conditions" not in diffusion.inputs:
        return None
    folder = diffusion.path.parent.parent / "conditions" / diffusion.inputs["conditions"]["fingerprint"]
    found = Artifact.load(folder, "conditions")
    check_inputs(diffusion, {"conditions": found})
    return found
