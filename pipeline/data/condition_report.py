"""What images are told, counted: how many have a value, which values how often, how long captions are.

Counts are exact by shard, so that merging them depends on no order. What a value is decides `condition_values.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.errors import many

SHOWN = 5  # values in a line
KEPT = 50  # values in a summary


def seen(values: Mapping[str, Sequence[Any]], texts: Sequence[Sequence[str]] | None) -> dict[str, Any]:
    """The counts of one shard, plain JSON values. values: by attribute those of its images, a text, a list of labels, a
    number, or None; texts: the captions of each image."""
    found: dict[str, Any] = {}
    for name, given in values.items():
        known = [value for value in given if value is not None]
        if any(isinstance(value, float) for value in known):
            found[name] = {"told": len(known), "low": min(known), "high": max(known), "sum": sum(known)}
        else:
            labels = [label for value in known for label in (value if isinstance(value, list) else [value])]
            found[name] = {"told": len(known), "values": dict(Counter(labels))}
    if texts is not None:
        lengths = Counter(str(len(text.encode("utf-8", "replace"))) for several in texts for text in several)
        found["caption"] = {"told": sum(map(bool, texts)), "bytes": dict(lengths)}
    return found


def merged(shards: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The report of all shards: by condition {told: images that have a value} and {values: the most frequent, with
    their counts, different: how many there are}, {low, high, mean} of numbers, or {captions, median, longest} in
    bytes. Of pictures, which are not among them, it is {told, bad: how many cannot be used}."""
    several = list(shards)
    report: dict[str, Any] = {}
    for name in dict.fromkeys(name for shard in several for name in shard):
        parts = [shard[name] for shard in several if shard[name]["told"]]
        told = sum(part["told"] for part in parts)
        if any("sum" in part for part in parts):
            ends = {"low": min(part["low"] for part in parts), "high": max(part["high"] for part in parts)}
            report[name] = {"told": told, **ends, "mean": sum(part["sum"] for part in parts) / told}
        elif any("bytes" in shard[name] for shard in several):
            sizes = Counter[int]()
            for part in parts:
                sizes.update({int(size): count for size, count in part["bytes"].items()})
            rising = sorted(sizes.elements())
            ends = {"median": rising[len(rising) // 2], "longest": rising[-1]} if rising else {}
            report[name] = {"told": told, "captions": len(rising), **ends}
        else:
            counts = Counter[str]()
            for part in parts:
                counts.update(part["values"])
            frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            report[name] = {"told": told, "different": len(counts), "values": dict(frequent[:KEPT])}
    return report


def lines(report: Mapping[str, Mapping[str, Any]], images: int, cut: int | None = None) -> list[str]:
    """The report in words, a line a condition. cut: captions that are longer than the model reads."""
    return [f"{name}: {_in_words(found, cut)}{_missing(found['told'], images)}" for name, found in report.items()]


def _in_words(found: Mapping[str, Any], cut: int | None) -> str:
    if "bad" in found:
        return many(found["told"], "picture")
    if "captions" in found:
        several = f" of {many(found['told'], 'image')}" if found["captions"] != found["told"] else ""
        sizes = (
            f", half of them up to {found['median']:,} bytes, the longest {found['longest']:,}"
            if found["captions"]
            else ""
        )
        return f"{many(found['captions'], 'caption')}{several}{sizes}" + (
            f"; {cut:,} longer than the model reads, and cut" if cut else ""
        )
    if "mean" in found:
        return f"numbers from {found['low']:g} to {found['high']:g}, {found['mean']:.4g} in the mean"
    shown = [f"{value} {count:,}" for value, count in list(found["values"].items())[:SHOWN]]
    more = ", ..." if found["different"] > SHOWN else ""
    return f"{many(found['different'], 'value')} ({', '.join(shown)}{more})"


def _missing(told: int, images: int) -> str:
    return (
        f"; {images - told:,} of {images:,} images ({(images - told) / images:.0%}) have none" if told < images else ""
    )
