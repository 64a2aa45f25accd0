"""What ingest tells about a data set: counts, sizes, classes, channel statistics, a contact sheet.

Sums are exact integers by shard, so that merging them depends on no order; those of floats are merged in the shards'
order. Which images count is decided by ingest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import percentiles, transforms
from pipeline.data.index import read_image
from pipeline.files import atomic_path, digest

if TYPE_CHECKING:
    from pipeline.data.index import Index
    from pipeline.schema.data import Data

SHEET = 8  # the contact sheet shows SHEET x SHEET training images, evenly spread
TRAIN, VAL = 0, 1


def unusable(key: str, reason: str, detail: str) -> dict[str, str]:
    """A line of quarantine.jsonl: the image's key, a reason to count by, and what was seen."""
    return {"key": key, "reason": reason, "detail": detail}


@dataclass
class Statistics:
    """Exact sums over a shard's images, so that merging them depends on no order."""

    channels: int
    counted: bool = False  # whether the training images' values are counted, for percentiles
    quarantine: list[dict[str, str]] = field(default_factory=list)
    counts: list[int] = field(default_factory=lambda: [0, 0])  # by split
    labels: tuple[Counter[int], Counter[int]] = field(default_factory=lambda: (Counter(), Counter()))
    sizes: Counter[str] = field(default_factory=Counter)
    buckets: tuple[Counter[int], Counter[int]] = field(default_factory=lambda: (Counter(), Counter()))  # by split
    generated: int = 0  # images that a model made
    pixels: int = 0
    sums: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    counts_of_values: Any = None  # [C, 65536], as `percentiles.counts` gives them

    def bad(self, key: str, error: transforms.BadImage) -> None:
        self.quarantine.append(unusable(key, error.reason, error.detail))

    def add(
        self, image: Any, size: tuple[int, int], label: int, split: int, bucket: int = 0, generated: bool = False
    ) -> None:
        """Count an image (as it is kept) whose first size was `size`; pixels count where it is for training. Of a
        passage of text, a str, the bytes stand for a width."""
        self.counts[split] += 1
        self.generated += generated
        self.buckets[split][bucket] += 1
        self.labels[split][label] += 1
        self.sizes[f"{size[0]}x{size[1]}"] += 1
        if split == TRAIN and not isinstance(image, str):
            stored = transforms.to_array(image).reshape(self.channels, -1)  # [C, H*W]
            values = stored.astype(np.float64 if stored.dtype.kind == "f" else np.int64)
            self.pixels += values.shape[1]
            for name, sums in (("sums", values.sum(1)), ("squares", (values * values).sum(1))):
                old = getattr(self, name) or [0] * self.channels
                setattr(self, name, [a + b for a, b in zip(old, sums.tolist(), strict=True)])
            if self.counted:
                found = percentiles.counts(stored)
                self.counts_of_values = found if self.counts_of_values is None else self.counts_of_values + found


def highest_label(results: list[dict[str, Any]]) -> int:
    """The highest class number met; -1 for none."""
    return max((int(label) for r in results for counts in r["labels"] for label in counts), default=-1)


def report(
    data: Data, classes: list[str], quarantine: list[dict[str, str]], results: list[dict[str, Any]]
) -> dict[str, Any]:
    """The data report, which is also the stage's summary; `results`: what each shard's task returned."""
    labels: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    sizes: Counter[str] = Counter()
    for result in results:
        sizes.update(result["sizes"])
        for split in (TRAIN, VAL):
            labels[split].update(result["labels"][split])
    pixels = sum(r["pixels"] for r in results)
    totals = {k: [sum(v) for v in zip(*(r[k] for r in results if r[k]), strict=True)] for k in ("sums", "squares")}
    mean = [s / pixels for s in totals["sums"]]
    std = [max(0.0, q / pixels - m * m) ** 0.5 for q, m in zip(totals["squares"], mean, strict=True)]
    white = 1 if data.measured else 255
    names = {str(i): name for i, name in enumerate(classes)} | {"-1": "(none)"}
    pictures = {
        "sizes": dict(sizes.most_common(20)),
        "distinct_sizes": len(sizes),
        "size": data.size,
        "channels": data.channels,
        **({"clip": {"frames": data.clip.frames, "rate": data.clip.rate}} if data.clip else {}),
        "channel_mean": [m / white for m in mean],  # of training images, in [0, 1], or in their values' unit
        "channel_std": [s / white for s in std],
    }
    generated = sum(r["shard"].get("generated", 0) for r in results)  # all of them in train
    return {
        "images": {"train": sum(r["train"] for r in results), "val": sum(r["val"] for r in results)},
        **({"generated": generated} if generated else {}),
        "classes": classes,
        "images_by_class": {
            split: {names[label]: count for label, count in sorted(labels[i].items(), key=lambda item: int(item[0]))}
            for i, split in enumerate(("train", "val"))
        },
        **({} if data.buckets is None else {"buckets": _buckets(data, results)}),
        **_by_kind(data, sizes, pictures),
        "quarantined": len(quarantine),
        "quarantine_reasons": dict(Counter(entry["reason"] for entry in quarantine).most_common()),
        "shards": len(results),
        "bytes": sum(r["shard"]["bytes"] for r in results),
        "digest": digest([[r["shard"]["sha256"], r["shard"]["rows_sha256"]] for r in results]),
    }


def _by_kind(data: Data, sizes: Counter[str], pictures: dict[str, Any]) -> dict[str, Any]:
    """What is told of text, of sounds, or of pictures."""
    if data.source.kind == "text":
        return _lengths(sizes)
    return _heard(sizes, pictures) if data.sound else pictures


def _lengths(sizes: Counter[str]) -> dict[str, Any]:
    """How long passages are, in bytes: all together, the median and the longest."""
    lengths = sorted((int(size.partition("x")[0]), count) for size, count in sizes.items())
    ends = np.cumsum([count for _, count in lengths])
    median = lengths[int(np.searchsorted(ends, ends[-1] / 2))][0] if lengths else 0
    whole = sum(length * count for length, count in lengths)
    return {"text": {"bytes": whole, "median": median, "longest": lengths[-1][0] if lengths else 0}}


def _heard(sizes: Counter[str], pictures: dict[str, Any]) -> dict[str, Any]:
    """How long sounds are as they are kept, in seconds, their rates, and the level of their spectrograms in dB."""
    both = [(*map(int, size.split("x")), count) for size, count in sizes.items()]
    rates: Counter[str] = Counter()
    for _, rate, count in both:
        rates[str(rate)] += count
    lengths = sorted((length, count) for length, _, count in both)
    ends = np.cumsum([count for _, count in lengths])
    middle = lengths[int(np.searchsorted(ends, ends[-1] / 2))][0]
    told = {
        "seconds": round(sum(length * count for length, count in lengths) / 1000, 3),
        "median": middle / 1000,
        "longest": lengths[-1][0] / 1000,
        "rates": dict(rates.most_common()),
    }
    return {"sound": told, **{key: pictures[key] for key in ("channels", "channel_mean", "channel_std")}}


def sheet_of_text(index: Index) -> str:
    """Training passages, evenly spread over the set, a line each."""
    from pipeline.data.passages import read_passage

    chosen = np.linspace(0, len(index) - 1, min(len(index), SHEET * SHEET)).round().astype(int)
    return "".join(f"{read_passage(index, int(i))}\n" for i in chosen)


def _buckets(data: Data, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each bucket its shape (height, width) and how many images it has."""
    rows: list[dict[str, Any]] = [{"shape": list(shape), "train": 0, "val": 0} for shape in data.shapes]
    for result in results:
        for split in ("train", "val"):
            for row, count in zip(rows, result["shard"]["buckets"][split], strict=True):
                row[split] += count
    return rows


def contact_sheet(index: Index, data: Data) -> np.ndarray[Any, Any]:
    """A square of training images, evenly spread over the set, in reading order: uint8 [S*h, S*w, C]. Images of several
    shapes stand in the middle of white cells."""
    chosen = np.linspace(0, len(index) - 1, SHEET * SHEET).round().astype(int)
    height, width = (max(sides) for sides in zip(*data.shapes, strict=True))
    values = index.values
    channels = data.channels if values is None else len(values.bands)
    images = np.full((SHEET * SHEET, channels, height, width), 255, np.uint8)  # [S*S, C, h, w]
    for cell, i in zip(images, chosen, strict=True):
        pixels = read_image(index, int(i), data)
        if data.clip is not None:  # the frame in the middle
            pixels = pixels[:, data.clip.frames // 2]
        if values is not None:
            pixels = values.shown(pixels.transpose(1, 2, 0)).transpose(2, 0, 1)
        transforms.centre_in(cell, pixels)
    grid = images.reshape(SHEET, SHEET, channels, height, width).transpose(0, 3, 1, 4, 2)
    return grid.reshape(SHEET * height, SHEET * width, channels)  # [S, h, S, w, C] -> [S*h, S*w, C]


def save_png(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    """Write uint8 [H, W, 1 or 3] as a PNG file."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(temporary, format="PNG")
