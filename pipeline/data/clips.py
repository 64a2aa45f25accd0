"""`data.source.kind: clips`: which files of moving pictures there are, and their frames, checked before and while they
are decoded.

Frames are taken at `data.clip.rate`, made square and of the size that is kept, and stored one below the other in one
PNG (`strip`): a training step decodes some kilobytes, in place of a whole animation. Animated WebP, GIF and PNG are
read here by Pillow, video by `video_files.py`. Whatever is wrong with a file is a `BadImage` with a reason.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.data import transforms, video_files
from pipeline.data.folders import files_under
from pipeline.data.listing import Digests, Listing, Row, class_order, existing, keys_of, plain
from pipeline.data.tables import list_table
from pipeline.data.text_tables import SUFFIXES
from pipeline.data.transforms import FORMATS, BadImage
from pipeline.errors import UserError, many

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.schema.clips import Clip, ClipsSource
    from pipeline.schema.data import Data

ANIMATIONS = {"webp": "WEBP", "gif": "GIF", "apng": "PNG"}  # suffix -> Pillow's name of the format
VIDEOS = ("mp4", "webm", "mov", "mkv", "m4v")
UNREAD = {
    "avi",
    "wmv",
    "flv",
    "mpg",
    "mpeg",
    "ts",
    "m2ts",
    "mts",
    "3gp",
    "ogv",
    "vob",
    "f4v",
}  # videos that are counted
MOST_KEPT = 178_956_970  # pixels of all frames of a clip that are kept: what Pillow decodes of one picture at most
VERSION = 3  # raised when the same files give other frames


class Timed(NamedTuple):
    """A frame of a file: `picture()`, before the next one is asked for; its pixels; when it is shown, in seconds."""

    picture: Callable[[], Image.Image]
    pixels: int
    start: float
    end: float


# ---- which files there are -------------------------------------------------------------------------------------------


def suffix(path: Path) -> str:
    return path.suffix[1:].lower()


def list_clips(source: ClipsSource, digests: Digests) -> Listing:
    """The clips of a folder, classes by folder, or of a table. UserError for tables of another kind, and where files of
    video cannot be read."""
    root = existing(source.path)
    if root.is_dir():
        every, left_out = files_under(root, lambda path: suffix(path) in {*ANIMATIONS, *VIDEOS, *UNREAD, *FORMATS})
        names = [name for name in every if suffix(name) in (*ANIMATIONS, *VIDEOS)]
        for name in (name for name in every if suffix(name) not in (*ANIMATIONS, *VIDEOS)):
            unread = f".{suffix(name)} files, a format that is not read"
            left_out.add(unread if suffix(name) in UNREAD else "images, which are no clips", str(name))
        rows = []
        for name, key in zip(names, keys_of([name.as_posix() for name in names]), strict=True):
            label = plain(name.parent.as_posix()) if name.parent != Path() else None
            stem = plain(name.with_suffix("").as_posix())
            together = None if key == stem else stem  # the same clip in two formats is held out, or trained on, as one
            rows.append(Row(key, str((root / name).absolute()), digests.of(root / name), label, together=together))
        found = Listing(rows, class_order(row.label for row in rows if row.label), [], left_out)
    elif root.suffix.lower() in SUFFIXES:
        from pipeline.schema.data import TableSource

        table = TableSource(
            kind="table", path=source.path, image=source.column, label=source.label, caption=source.caption
        )
        found = list_table(table, digests)
    else:
        raise UserError(f"data.source: {source.path}: expected a folder of clips, or a table ({', '.join(SUFFIXES)})")
    if not video_files.there() and (videos := [row for row in found.rows if suffix(Path(str(row.location))) in VIDEOS]):
        raise UserError(
            f"data.source: {many(len(videos), 'file')} of video, such as {videos[0].key}: give the package av, by the "
            "extra `video`"
        )
    return found


# ---- their frames ----------------------------------------------------------------------------------------------------


def strip(content: bytes, data: Data, ending: str) -> tuple[Image.Image, tuple[int, int]]:
    """The frames of a clip's file at the rate and size of the config, one below the other, as an RGB or L image
    [T side, side]; and width and height of the file's frames. ending: the file's suffix, without dot.

    Raises BadImage: undecodable, truncated, oversized, wrongly named, too many frames, too long, one frame, no
    duration, too short.
    """
    from PIL import Image

    assert data.clip is not None
    frames: list[Any] = []
    size = (0, 0)
    for image in at_rate(checked(opened(content, data, ending), data.clip), data.clip):
        size = image.size
        square = transforms.shrink(
            transforms.to_mode(image, data.channels, data.background),
            transforms.stored_side(data.size, data.augment.crop == "random"),
            square=True,
        )
        frames.append(np.asarray(square))
        if len(frames) * frames[0].shape[0] * frames[0].shape[1] > MOST_KEPT:
            raise BadImage("too long", f"more than {len(frames) - 1} frames of this size cannot be kept")
    if len(frames) < data.clip.frames:
        seconds = len(frames) / data.clip.rate
        raise BadImage(
            "too short",
            f"{seconds:.3g} s are {len(frames)} frames at {data.clip.rate:g} a second, not {data.clip.frames}",
        )
    return Image.fromarray(np.concatenate(frames)), size


def opened(content: bytes, data: Data, ending: str) -> Iterator[Timed]:
    """The frames of a file, each decoded when it is asked for."""
    assert data.clip is not None
    if ending in ANIMATIONS:
        return _animation(content, data, ending)
    if ending in VIDEOS:
        return (
            Timed(*frame) for frame in video_files.frames(content, partial(refuse, clip=data.clip), data.max_pixels)
        )
    raise BadImage("undecodable", f".{ending} is no clip: expected one of {', '.join((*ANIMATIONS, *VIDEOS))}")


def checked(frames: Iterable[Timed], clip: Clip) -> Iterator[Timed]:
    """The frames, as long as there are not too many of them: whatever a header says."""
    count, pixels, start, end = 0, 0, 0.0, 0.0
    for frame in frames:
        if not count:
            start = frame.start
        count, end = count + 1, max(end, frame.end)
        pixels += frame.pixels
        refuse(count, pixels, end - start, clip)
        yield frame
    if count == 1:
        raise BadImage("one frame", "a picture that stands still, no clip")
    if not count:
        raise BadImage("undecodable", "holds no frame")
    if end <= start:
        raise BadImage("no duration", f"its {count} frames are shown for no time")


def refuse(frames: int, pixels: int, seconds: float, clip: Clip) -> None:
    """BadImage for what is over a limit of the config."""
    if frames > clip.most_frames:
        raise BadImage("too many frames", f"over data.clip.most_frames = {clip.most_frames}")
    if pixels > clip.most_pixels:
        raise BadImage("oversized", f"frames of {pixels:,} pixels and more, over data.clip.most_pixels")
    if seconds > clip.longest:
        raise BadImage("too long", f"{seconds:.1f} s or more, over data.clip.longest = {clip.longest:g}")


def at_rate(frames: Iterable[Timed], clip: Clip) -> Iterator[Image.Image]:
    """The frame that is shown in the middle of each step of 1 / rate seconds, as long as the clip has one there."""
    first, number = None, 0
    for frame in frames:
        first = frame.start if first is None else first
        while (number + 0.5) / clip.rate < frame.end - first:
            if (number + 0.5) / clip.rate >= frame.start - first:
                yield frame.picture()
            number += 1


def _animation(content: bytes, data: Data, ending: str) -> Iterator[Timed]:
    from PIL import Image, UnidentifiedImageError

    assert data.clip is not None
    if ending == "apng":
        transforms.check_png(content)
    if content[:4] == b"RIFF" and int.from_bytes(content[4:8], "little") + 8 > len(content):
        raise BadImage("truncated", "the file ends before its first chunk says")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images: the limits here are ours
            image: Any = Image.open(io.BytesIO(content))
            if image.format != ANIMATIONS[ending]:
                raise BadImage("wrongly named", f".{ending} holds {image.format}")
            width, height = image.size
            if width * height > data.max_pixels:
                raise BadImage("oversized", f"{width}x{height} is over data.max_pixels = {data.max_pixels}")
            if ending != "gif":  # of a GIF Pillow would go through the file to count; it is counted as it is read
                count = int(getattr(image, "n_frames", 1))
                refuse(count, count * width * height, 0.0, data.clip)
            start, number = Fraction(0), 0  # in milliseconds; sums are exact
            while True:
                image.seek(number)
                image.load()
                # whole ones, but in a PNG, which has fractions of a second of two 16-bit numbers
                end = start + Fraction(image.info.get("duration") or 0).limit_denominator(2**16)
                yield Timed(lambda: image, width * height, float(start / 1000), float(end / 1000))
                start, number = end, number + 1
    except BadImage:
        raise
    except EOFError:
        if ending == "gif" and not content.rstrip(b"\0\r\n ").endswith(b";"):
            raise BadImage("truncated", "the GIF has no end") from None
    except UnidentifiedImageError:  # its own text holds an address in memory
        raise BadImage("undecodable", "no known image format") from None
    except Exception as error:  # a damaged file raises whatever its decoder meets first
        reason = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise BadImage(reason, f"{type(error).__name__}: {error}".replace("\n", " ")) from error


# ---- recipes --------------------------------------------------------------------------------------------------------


def recipe(data: Data) -> dict[str, Any]:
    """What of `data.clip` decides on the shards; nothing where there are no clips."""
    if data.clip is None:
        return {}
    return {"clip": {"version": VERSION, **data.clip.model_dump(exclude={"start"})}}


def order_recipe(data: Data) -> dict[str, Any]:
    """What of it decides on windows."""
    return {} if data.clip is None else {"clip": {"start": data.clip.start}}
