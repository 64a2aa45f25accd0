"""A first config for clips: whether a source is of clips, how long they are, sizes for the machine."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import clips, look_through
from pipeline.data.folders import files_under
from pipeline.data.held_out import held_out
from pipeline.data.listing import Listing, Unread
from pipeline.data.text_tables import SUFFIXES, TextTable
from pipeline.data.transforms import FORMATS, BadImage
from pipeline.errors import UserError, by_reason, many
from pipeline.planning.starter_data import yaml_text
from pipeline.schema.clips import ClipsSource
from pipeline.schema.data import Data

if TYPE_CHECKING:
    from pipeline.planning.starter import Machine

LOOKED = 24  # files that are looked at, evenly spread
COLUMNS = ("clip", "video", "animation")  # names of a table's column of paths
CLASSES = ("label", "class", "category", "action")
FEWEST = 16  # clips that are worth a config
RATES = (4, 6, 8, 12)  # frames a second to choose from on a CPU
FRAMES = (9, 5, 3)  # of a sample: one, and a power of two; the first that clips are long enough for
TIME = 2  # frames of a latent


@dataclass(frozen=True)
class Clips:
    """source: the config's `data.source`; listing: its clips. seconds, sides, rates: of those looked at, that move.
    still: share of files of one frame; bad: reasons why others cannot be used; looked: number of those looked at."""

    source: dict[str, Any]
    listing: Listing
    seconds: list[float]
    sides: list[int]
    rates: list[float]
    still: float
    bad: Counter[str]
    looked: int


def look(given: str) -> Clips | None:
    """The clips at a path; None where most of what lies there is none. UserError where none can be read."""
    path = Path(given).absolute()
    source = _of_folder(path) if path.is_dir() else _of_file(path)
    if source is None:
        return None
    listing = clips.list_clips(ClipsSource.model_validate(source), Unread())
    looked = [Path(str(row.location)) for row in listing.rows[:: max(1, math.ceil(len(listing.rows) / LOOKED))]]
    seconds, sides, rates, bad = [], [], [], Counter[str]()
    for file in looked:
        try:
            length, side, count = _measured(file)
        except BadImage as error:
            bad[error.reason] += 1
            continue
        seconds.append(length)
        sides.append(side)
        rates.append(count / length)
    still = bad.pop("one frame", 0) / max(1, len(looked))
    if not seconds and bad:
        files = many(len(looked), "file")
        raise UserError(f"{given}: none of {files} looked at is a clip that can be read ({by_reason(bad)})")
    if not seconds:
        return None
    return Clips(source, listing, seconds, sides, rates, still, bad, len(looked))


def _of_folder(path: Path) -> dict[str, Any] | None:
    """A folder whose files are videos, or animations for a third or more."""
    found, _ = files_under(path, lambda file: clips.suffix(file) in (*clips.ANIMATIONS, *clips.VIDEOS, *FORMATS))
    some = found[:: max(1, math.ceil(len(found) / LOOKED))]
    moving = sum(_moves(path / name) for name in some)
    return {"kind": "clips", "path": str(path)} if some and 3 * moving >= len(some) else None


def _of_file(path: Path) -> dict[str, Any] | None:
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        return None
    row = next((record for _, record in TextTable(path).rows()), {})
    column = next((name for name in COLUMNS if name in row), None)
    if column is None or clips.suffix(Path(str(row[column]))) not in (*clips.ANIMATIONS, *clips.VIDEOS):
        return None
    label = next((name for name in CLASSES if name in row), None)
    found = {"column": column if column != "clip" else None, "label": label}
    return {"kind": "clips", "path": str(path), **{key: value for key, value in found.items() if value}}


def _moves(file: Path) -> bool:
    if clips.suffix(file) in clips.VIDEOS:
        return True
    if clips.suffix(file) not in clips.ANIMATIONS:
        return False
    try:
        return look_through.animated(file.read_bytes())
    except OSError:
        return False


def _measured(file: Path) -> tuple[float, int, int]:
    """Seconds, shorter side in pixels, and frames of a clip. BadImage where it cannot be used."""
    limits = {"frames": 1, "rate": 1}
    data = Data.model_validate({"source": {"kind": "clips", "path": str(file.parent)}, "clip": limits})
    try:
        content = file.read_bytes()
    except OSError:
        raise BadImage("missing", "the file cannot be read") from None
    count, length, side = 0, 0.0, 0
    assert data.clip
    for frame in clips.checked(clips.opened(content, data, clips.suffix(file)), data.clip):
        side = side or min(frame.picture().size)
        count, length = count + 1, max(length, frame.end)
    return length, side, count


def told(found: Clips) -> list[str]:
    """What there is and what is left out, a line each."""
    listing = found.listing
    lines = [f"{many(len(listing.rows), 'clip')}, {many(len(listing.classes), 'class', 'classes')}"]
    lines += [f"Not taken from the source: {listing.left_out}."] if listing.left_out else []
    if found.still:
        lines.append(f"{found.still:.0%} of the files looked at are of one frame: they go to quarantine.")
    if found.bad:
        lines.append(f"Of the files looked at some cannot be used ({by_reason(found.bad)}): they go to quarantine.")
    return lines + listing.notes


def _window(found: Clips) -> tuple[int, int]:
    """Frames of a sample, and frames a second: the slowest of the usual rates, or else the clips' own, at which nine
    clips of ten are half as long again as a window, or else as long. UserError for clips of two frames."""
    shortest, own = sorted(found.seconds)[len(found.seconds) // 10], statistics.median(found.rates) + 1e-6
    rates = [rate for rate in RATES if rate <= max(RATES[0], own)]
    rates += [math.floor(own)] if math.floor(own) > rates[-1] else []
    for frames, room in ((frames, room) for frames in FRAMES for room in (1.5, 1)):
        if rate := next((rate for rate in rates if rate * shortest + 1e-6 >= room * frames), None):
            return frames, rate
    length = f"{shortest:.3g} s, {own:.3g} frames a second"
    raise UserError(f"most clips have fewer than {FRAMES[-1]} frames ({length}): give longer ones")


def write_config(found: Clips, machine: Machine, name: str, quick: bool) -> str:
    """YAML with reasons. UserError where there are too few clips."""
    rows, gpu = found.listing.rows, machine.gpus > 0
    share = found.still + found.bad.total() / found.looked
    count = round(len(rows) * (1 - share))
    if count < FEWEST:
        least = f"at least {FEWEST} are needed, and a model worth having needs thousands"
        raise UserError(f"about {many(count, 'moving clip')}: {least}")
    fraction = 0.1 if len(rows) >= 100 else 0.25
    keys = {row.together or row.key for row in rows}
    val = sum(held_out(key, fraction) for key in keys)
    if not 0 < val < len(keys):
        raise UserError(f"{many(len(keys), 'clip')} cannot be split into training and held-out ones; give more")
    frames, rate = _window(found)
    side = statistics.median(found.sides)
    size = next((size for size in ((128, 64) if gpu else ()) if size <= side), 32)
    steps = (60, 80) if quick else (20_000, 40_000) if gpu else (2000, 3000)
    batch = min(32 if gpu else 16, 1 << (max(2, count // 2).bit_length() - 1))
    source = ", ".join(f"{key}: {yaml_text(value)}" for key, value in found.source.items())
    classes = len(found.listing.classes)
    limit = "\n  limit: 200                      # --quick" if quick and len(rows) > 200 else ""
    width = (
        "width: 64, multipliers: [1, 2, 4], blocks: 2, groups: 16, attention: true"
        if gpu
        else ("width: 16, multipliers: [1, 2, 2], blocks: 1, groups: 8, attention: false")
    )
    backbone = "width: 384, depth: 12, heads: 6" if gpu else "width: 128, depth: 6, heads: 4"
    length = f"{statistics.median(found.seconds):.3g} s, {statistics.median(found.rates):.0f} frames a second"
    bound = min(0.99, share * 1.2 + 0.05)
    return f"""\
# {len(rows):,} files of clips, {classes or "no"} classes. What a key means: ldm explain KEY
run:
  name: {yaml_text(name)}
data:
  source: {{{source}}}
  size: {size}                        # of frames, which are made square; their shorter side is {side:g} pixels
  clip: {{frames: {frames}, rate: {rate}}}       # {frames / rate:.3g} s; clips are of {length}
  split: {{val_fraction: {fraction}}}
  shard_size: 64
  max_quarantine: {bound:.2g}            # {share:.0%} of the files looked at cannot be used{limit}
autoencoder:
  model: {{kind: clips, {width},
          latent_channels: 4, time: {TIME}}}
  loss: {{reconstruction: l1, kl_weight: 1e-5}}
  training: {{batch_size: {batch}, steps: {steps[0]}, learning_rate: 1e-3, warmup: {max(5, steps[0] // 30)},
             schedule: wsd, half_lives: [{max(1, steps[0] * batch // 12)}]}}   # of the average of the weights, in clips
latents:
  views: [as_is, crop, crop, crop]   # a window in the middle, and three drawn ones
diffusion:
  backbone: {{kind: dit, {backbone}, patch: 2}}
  condition: {{kind: {"class" if classes > 1 else "none"}}}
  training: {{batch_size: {batch}, steps: {steps[1]}, learning_rate: 5e-4, warmup: {max(5, steps[1] // 30)},
             schedule: wsd, half_lives: [{max(1, steps[1] * batch // 12)}]}}
evaluate:
  samples: {16 if quick else 64}
  steps: {10 if quick else 30}
  guidance: 1
cluster:
  workers: {max(1, machine.gpus) if gpu else min(2, machine.cpus)}
"""
