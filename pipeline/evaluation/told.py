"""What the images of a split are told besides their class, in the order in which evaluation takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import Config


def told_of(config: Config, data: Path, options: Mapping[str, Any], split: str, count: int) -> dict[str, Any]:
    """Prompts and attributes of the first `count` images of a split in the order of `split_order`, as arguments of
    `Generator.request`; empty for a model that knows none. options: the model's."""
    from pipeline.data.condition_shards import columns_of
    from pipeline.data.index import Index
    from pipeline.data.split import split_order
    from pipeline.generate.told import of_samples

    if not config.diffusion.condition.columns:
        return {}
    index = Index.open(data, split, config.data.cache)
    rows, label = split_order(data, split, config, config.evaluate.seed)[0], getattr(config.data.source, "label", None)
    return of_samples(options, [columns_of(index, int(i), label) for i in rows[:count]])
