"""`data.source.kind: sound`: which sounds there are, what they are called, what shards hold of them, what models see.

Shards hold a sound's own samples, of its own rate, type and channels, as KEY.wav: cut to `data.sound.seconds`, no value
changed. What models see of them is made when they are read (`waves.py`). Files of sources are read by `sound_files.py`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import parquet, sound_files
from pipeline.data.folders import files_under
from pipeline.data.listing import Digests, Listing, Row, class_order, existing, keys_of, plain
from pipeline.data.tables import list_table
from pipeline.data.text_tables import SUFFIXES as TABLES
from pipeline.data.transforms import BadImage
from pipeline.data.waves import Heard, spectrogram, to_wav
from pipeline.errors import UserError
from pipeline.files import digest, sha256_file

if TYPE_CHECKING:
    from pipeline.schema.data import Data
    from pipeline.schema.sound import Sound

Array = np.ndarray[Any, np.dtype[Any]]
VERSION = 1  # raised when the same files give other values
SILENCE = "stretches of silence"


def list_sounds(data: Data, digests: Digests) -> Listing:
    """The sounds of a folder, a file or a table; of a file that is cut into several, each."""
    source: Any = data.source
    if importlib.util.find_spec("soundfile") is None:
        raise UserError("data.source: sounds need the package soundfile: install the extra `sound`")
    ending, folder = Path(source.path).suffix.lower(), Path(source.path).is_dir()  # a folder may be called a.csv
    if ending in parquet.SUFFIXES or (ending in TABLES and not folder):
        found = list_table(_table(source), digests)
    else:
        found = _of_folder(source, digests)
    rows = [one for row in found.rows for one in _cut(row, data)]
    return replace(found, rows=rows)


def _table(source: Any) -> Any:
    from pipeline.schema.data import TableSource

    return TableSource(kind="table", path=source.path, image=source.sound, label=source.label, caption=source.caption)


def _of_folder(source: Any, digests: Digests) -> Listing:
    root = existing(source.path)
    names, left_out = files_under(root, sound_files.is_sound)
    rows = []
    for name, key in zip(names, keys_of([name.as_posix() for name in names]), strict=True):
        path = root / name if root.is_dir() else root
        label = plain(name.parent.as_posix()) if name.parent != Path() else None
        rows.append(Row(key, str(path.absolute()), digests.of(path), label))
    return Listing(rows, class_order(row.label for row in rows if row.label), [], left_out)


def _cut(row: Row, data: Data) -> list[Row]:
    """The rows of a file: one, or with `cut: all` one for each stretch; one that cannot be opened is one, for
    quarantine."""
    source: Any = data.source
    count, sound = 1, _sound(data)
    if source.cut == "all":
        try:
            held = sound_files.look(Path(str(row.location)), source.longest)
            count = max(1, math.floor(held.frames / math.ceil(sound.seconds * held.rate) + 0.5))
        except (BadImage, OSError):
            count = 1
    made = []
    for number in range(count):
        key = row.key if count == 1 else f"{row.key}/{number:05d}"
        known = digest_of(row.digest, number, sound.seconds)
        together = row.together if count == 1 else row.together or row.key
        made.append(replace(row, key=key, location=f"{row.location}#{number}", digest=known, together=together))
    return made


def digest_of(file: str, number: int, seconds: float) -> str:
    """What identifies a sound: the digest of its file, its number in it, and how long it is."""
    return digest([file, number, VERSION, seconds])


def reader(data: Data) -> Callable[[Row], Heard]:
    """A function from a row to its sound. It raises BadImage, and UserError for a file that is another one than was
    listed."""
    source: Any = data.source
    sound = _sound(data)
    sha256, look = lru_cache(maxsize=2)(sha256_file), lru_cache(maxsize=2)(sound_files.look)  # once a file

    def read(row: Row) -> Heard:
        path, _, number = str(row.location).rpartition("#")
        try:
            found = sha256(path)
        except OSError:
            raise BadImage("missing", "the file cannot be read any more") from None
        if digest_of(found, int(number), sound.seconds) != row.digest:
            raise UserError(f"{plain(path)} changed while ingest ran: run it again")
        held = look(Path(path), source.longest)
        length = math.ceil(sound.seconds * held.rate)
        values = sound_files.read(held, int(number) * length, length)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise BadImage("not finite", "holds NaN or infinity")
        if not values.any():
            piece = source.cut == "all" and held.frames > length
            raise BadImage(SILENCE if piece else "silent", "all samples are 0")
        wav = to_wav(values, held.rate)
        milliseconds = max(1, round(1000 * len(values) / held.rate))  # a side of nothing has no bucket
        return Heard(wav, spectrogram(wav, sound, data.channels), milliseconds, held.rate)

    return read


def _sound(data: Data) -> Sound:
    assert data.sound is not None
    return data.sound
