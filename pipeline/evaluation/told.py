"""What the images of a split are told besides their class, in the order in which evaluation takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    """Prompts, attributes, maps of the first `count` images of a split in the order of `split_order` (of those with a
    class, where the model is told one), as arguments of `Generator.request`; empty for a model that knows none.
    options: the model's; conditions: where its maps are."""
    from pipeline.data.condition_pool import maps_of
    from pipeline.data.split import split_order
    from pipeline.generate.told import of_samples

    if not config.diffusion.condition.columns:
        return {}
    rows, labels = split_order(data, split, config, config.evaluate.seed)
    if config.diffusion.condition.kind == "class" and (labels >= 0).any():
        rows = rows[labels >= 0]  # those whose classes are asked for (`asked_classes`), in the same order
    rows = rows[:count]
    told = of_samples(options, _columns(config, data, split, rows))
    if conditions is None:
        return told
    maps = maps_of(conditions, split, [int(i) for i in rows])
    return {**told, **({"maps": maps} if maps else {})}


def metas_of(config: Config, data: Path, split: str, count: int | None = None) -> list[dict[str, Any]]:
    """The columns of the first `count` images of a split in the order of `split_order`."""
    from pipeline.data.split import split_order

    return _columns(config, data, split, split_order(data, split, config, config.evaluate.seed)[0][:count])


def befores(config: Config, data: Path, split: str, count: int) -> list[str]:
    """Of text: what is said before each of the first `count` passages of a split in the order of `split_order`; empty
    where there is nothing."""
    from pipeline.data.captions import captions_of

    return [next(iter(captions_of(meta.get("caption"))), "") for meta in metas_of(config, data, split, count)]


def _columns(config: Config, data: Path, split: str, rows: Iterable[int]) -> list[dict[str, Any]]:
    from pipeline.data.condition_shards import columns_of
    from pipeline.data.index import Index

    index = Index.open(data, split, config.data.cache)
    return [columns_of(index, int(i), label_of(config)) for i in rows]


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
