"""A first config for sounds: whether a source is sounds, how long they are, their classes, sizes for the machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import parquet, sound_files, sounds
from pipeline.data.folders import files_under, walk
from pipeline.data.held_out import held_out
from pipeline.data.listing import Listing, Unread
from pipeline.data.parquet_files import opened
from pipeline.data.text_tables import SUFFIXES, TextTable
from pipeline.data.transforms import BadImage
from pipeline.errors import UserError, by_reason, many
from pipeline.planning.starter_data import yaml_text
from pipeline.schema.data import Data

if TYPE_CHECKING:
    from pipeline.planning.starter import Machine

COLUMNS = ("sound", "audio", "file", "path", "wav", "filename")  # of a table, the likeliest first
CLASSES = ("label", "class", "category", "instrument", "genre", "word")
GROUPS = ("speaker", "kit", "recording", "session", "song", "artist", "group")
FEWEST = 100  # sounds that are worth a config
LOOKED = 200  # files whose header is read
HELD_OUT = 0.15
BAD = 0.05  # share of sounds that cannot be used, at most
HOP, STEP = 256, 16  # samples; frames of a spectrogram are a multiple of STEP


@dataclass(frozen=True)
class Sounds:
    """source: the config's `data.source`; listing: its files; lengths: of some, in seconds; rates: of these; stereo:
    the share of these that are; groups: the column that keeps sounds together."""

    source: dict[str, Any]
    listing: Listing
    lengths: list[float]
    rates: list[int]
    stereo: float
    bad: Counter[str]
    groups: str | None = None


def look(given: str) -> Sounds | None:
    """The sounds at a path; None where there are none, or images. UserError where they cannot be read."""
    path = Path(given).absolute()
    source = _of_folder(path) if path.is_dir() else _of_table(path)
    if source is None:
        return None
    listing = sounds.list_sounds(_data(source), Unread())
    rows = listing.rows
    lengths, rates, counts, bad = [], [], Counter[int](), Counter[str]()
    for row in rows[:: -(-len(rows) // LOOKED)] if rows else []:
        try:
            held = sound_files.look(Path(str(row.location).rpartition("#")[0]), 600)
        except BadImage as error:
            bad[error.reason] += 1
            continue
        lengths.append(held.frames / held.rate)
        rates.append(held.rate)
        counts[held.channels] += 1
    if not lengths:
        reasons = f" ({by_reason(bad)})" if bad else ""
        raise UserError(f"{given}: none of {many(len(rows), 'file')} is a sound that can be read{reasons}")
    columns = [name for name in GROUPS if len({str(row.attributes.get(name)) for row in rows}) > 2]
    stereo = 1 - counts[1] / counts.total()
    return Sounds(source, listing, sorted(lengths), rates, stereo, bad, columns[0] if columns else None)


def _of_folder(path: Path) -> dict[str, Any] | None:
    files, _ = files_under(path, sound_files.is_sound)
    if not files or walk(path).files or any(path.glob("*.tar")):
        return None
    return {"kind": "sound", "path": str(path)}


def _of_table(path: Path) -> dict[str, Any] | None:
    if not path.is_file() or path.suffix.lower() not in (*SUFFIXES, *parquet.SUFFIXES):
        return None
    first: dict[str, Any] = {}
    if path.suffix.lower() in SUFFIXES:
        first = next((record for _, record in TextTable(path).rows()), {})
    else:
        with opened(path) as table:
            if table.metadata.num_rows:
                first = next(table.iter_batches(batch_size=1)).to_pylist()[0]
    column = next((name for name in COLUMNS if sound_files.is_sound(Path(str(first.get(name, ""))))), None)
    if column is None:
        return None
    found = {"sound": column if column != "sound" else None, "label": next((n for n in CLASSES if n in first), None)}
    return {"kind": "sound", "path": str(path), **{key: value for key, value in found.items() if value}}


def _data(source: dict[str, Any]) -> Data:
    return Data.model_validate({"source": source, "sound": {}, "channels": 1})


def told(found: Sounds) -> list[str]:
    """What there is and what is left out, a line each."""
    count, classes = many(len(found.listing.rows), "sound"), many(len(found.listing.classes), "class", "classes")
    middle, longest = found.lengths[len(found.lengths) // 2], found.lengths[-1]
    lines = [f"{count}, {classes}, of {middle:.3g} s (the median; {longest:.3g} s at most)"]
    lines += [f"Not taken from the source: {found.listing.left_out}."] if found.listing.left_out else []
    lines += [f"{many(len(found.listing.missing), 'named file')} missing."] if found.listing.missing else []
    if found.bad:
        mend = "ingest will refuse them: mend them, or raise `data.max_quarantine`"
        end = mend if found.bad.total() > BAD * (found.bad.total() + len(found.lengths)) else "they go to quarantine"
        lines.append(f"Of those looked at {found.bad.total():,} cannot be used ({by_reason(found.bad)}): {end}.")
    return lines + found.listing.notes


def write_config(found: Sounds, machine: Machine, name: str, quick: bool) -> str:
    """YAML with reasons. UserError where there are too few sounds."""
    rows, gpu = found.listing.rows, machine.gpus > 0
    seconds, frames, rate = _length(found, gpu)
    pieces = found.lengths[len(found.lengths) // 2] > 4 * seconds
    count = len(rows) if not pieces else int(sum(found.lengths) / len(found.lengths) * len(rows) / seconds)
    if count < FEWEST:
        raise UserError(
            f"{many(count, 'sound')}: at least {FEWEST} are needed, and a model worth having needs thousands"
        )
    column, what = found.groups, found.groups or "files"
    values = [str(row.attributes.get(column)) if column else row.together or row.key for row in rows]
    if not 0 < sum(held_out(value, HELD_OUT) for value in values) < len(values):
        raise UserError(f"{len(set(values))} {what} cannot be split into training and held-out ones; give more")
    source = {**found.source, **({"cut": "all"} if pieces else {})}
    shown = ", ".join(f"{key}: {yaml_text(value)}" for key, value in source.items())
    split = f"by: column, column: {yaml_text(column)}, " if column else ""
    limit = "\n  limit: 2000   # --quick" if quick and len(rows) > 2000 else ""
    classes = len(found.listing.classes)
    steps = (200, 250) if quick else (20_000, 100_000) if gpu else (3000, 6000)
    batch = [min(most, _power(count // 4)) for most in ((64, 256) if gpu else (32, 64))]
    rates = ("2e-4", "2e-4") if gpu else ("1.5e-3", "1e-3")
    width, blocks = (64, 2) if gpu else (16, 1)
    backbone = "width: 384, depth: 12, heads: 6" if gpu else "width: 128, depth: 6, heads: 4"
    return f"""\
# {len(rows):,} files, {classes or "no"} classes. What a key means: ldm explain KEY
run:
  name: {yaml_text(name)}
data:
  source: {{{shown}}}
  channels: 1   # mono; 2: stereo, which {found.stereo:.0%} of the files are
  sound: {{rate: {rate}, seconds: {seconds:g}, mels: 64, hop: {HOP}, window: {4 * HOP}}}   # 64 mels x {frames} frames
  split: {{{split}val_fraction: {HELD_OUT}}}{limit}
  max_quarantine: {BAD}   # silent, damaged, repeated
  shard_size: {max(64, min(2048, _power(count // 8)))}
autoencoder:
  model: {{kind: kl, width: {width}, multipliers: [1, 2, 4], blocks: {blocks}, latent_channels: 4, groups: 8,
          attention: false}}   # 1/4 of each side
  loss: {{reconstruction: l1, kl_weight: 1e-4}}
{_training(steps[0], batch[0], rates[0])}
diffusion:
  backbone: {{kind: dit, {backbone}, patch: 2}}
  condition: {{kind: {"class, drop: 0.1" if classes > 1 else "none"}}}
{_training(steps[1], batch[1], rates[1])}
evaluate:
  samples: {100 if quick else 500}
  steps: {10 if quick else 20}
  guidance: {1.5 if classes > 1 else 1}
cluster:
  workers: {max(1, machine.gpus) if gpu else min(2, machine.cpus)}
"""


def _training(steps: int, batch: int, rate: str) -> str:
    every = steps // 4
    return f"""\
  training: {{batch_size: {batch}, steps: {steps}, learning_rate: {rate}, warmup: {steps // 30}, schedule: wsd,
             half_lives: [{steps * batch // 12}],   # of the average of the weights, in sounds
             save_every: {every}, validate_every: {every}, preview_every: {every}}}"""


def _length(found: Sounds, gpu: bool) -> tuple[float, int, int]:
    """Seconds and frames of a sound, and the rate: what nine of ten sounds fit into, a second or two on a CPU."""
    rate = min(sorted(found.rates)[len(found.rates) // 10], 22_050 if gpu else 16_000)  # of most files; one may be odd
    wanted = min(found.lengths[int(0.9 * (len(found.lengths) - 1))], 4 if gpu else 1.1)
    frames = max(2 * STEP, round(wanted * rate / HOP / STEP) * STEP)
    return frames * HOP / rate, frames, rate


def _power(most: int) -> int:
    return 1 << (max(2, most).bit_length() - 1)
