"""Video files (.mp4, .webm, ...) by PyAV, which brings FFmpeg's libraries: frames of one, checked as they come, and
clips that a model made as H.264 in an .mp4. The one place that knows PyAV (the extra `video`)."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.transforms import BadImage

if TYPE_CHECKING:
    from PIL import Image

Check = Callable[[int, int, float], None]  # of frames, pixels of all of them, seconds; BadImage over a limit


def there() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def container_of(content: bytes) -> str:
    """Which of FFmpeg's readers a file is for, by its first bytes. It is not left to guess: some kinds of files make it
    open other files and addresses. BadImage for other kinds."""
    if content[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"  # WebM is one
    if content[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
        return "mov"  # so is MP4
    raise BadImage("wrongly named", "holds no MP4, MOV, WebM or Matroska")


def cut_off(content: bytes) -> bool:
    """Whether a file ends before its boxes (ISO 14496-12, 4.2) or its Segment (RFC 8794, 4 and 5) do. FFmpeg decodes
    what there is, and says nothing."""
    if container_of(content) == "matroska":
        at = 4
        for _ in range(2):  # the size of the header, whose ID has four bytes, and behind it that of the Segment
            length = 9 - (content[at] if at < len(content) else 0).bit_length()
            size = int.from_bytes(content[at : at + length], "big") & ((1 << 7 * length) - 1)
            end = at + length + size
            unknown = size == (1 << 7 * length) - 1
            at = end + 4
        return not unknown and end > len(content)
    at = 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(content[at + 8 : at + 16], "big")
        if size == 0:
            return False  # the last one, to the end
        at += max(size, 8)
    return at > len(content)


def frames(
    content: bytes, check: Check, max_pixels: int
) -> Iterator[tuple[Callable[[], Image.Image], int, float, float]]:
    """The frames of a file's first video, as `clips.Timed`, upright; decoded when they are asked for. check: is asked
    before anything is decoded, about what the file says of itself. Raises BadImage, also for what is damaged."""
    import av

    if cut_off(content):
        raise BadImage("truncated", "the file ends before what it says of itself")
    try:
        with av.open(io.BytesIO(content), mode="r", format=container_of(content)) as container:
            if not container.streams.video:
                raise BadImage("undecodable", "holds no video")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # threads are the workers'
            width, height = stream.codec_context.width or 0, stream.codec_context.height or 0
            if width * height > max_pixels:
                raise BadImage("oversized", f"{width}x{height} is over data.max_pixels = {max_pixels}")
            seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
            check(stream.frames, stream.frames * width * height, seconds or (container.duration or 0) / av.time_base)
            yield from _decoded(container, stream, max_pixels)
    except BadImage:
        raise
    except EOFError as error:
        raise BadImage("truncated", "the file ends before its frames do") from error
    except Exception as error:  # a damaged file raises whatever FFmpeg meets first
        reason = "truncated" if "moov" in str(error) or "truncat" in str(error).lower() else "undecodable"
        raise BadImage(reason, f"{type(error).__name__}: {error}".replace("\n", " ")) from error


def _decoded(
    container: Any, stream: Any, max_pixels: int
) -> Iterator[tuple[Callable[[], Image.Image], int, float, float]]:
    """A frame is shown until the next one; the last as long as it says, or as an average one."""
    step = float(1 / stream.average_rate) if stream.average_rate else 0.0
    aspect = float(stream.sample_aspect_ratio or 1)
    before: Any = None
    for frame in container.decode(stream):
        if frame.width * frame.height * max(aspect, 1 / aspect) > max_pixels:
            shown = f"{frame.width}x{frame.height}" + f" in pixels {aspect:.3g} times as wide as high" * (aspect != 1)
            raise BadImage("oversized", f"{shown} is over data.max_pixels = {max_pixels}")
        if frame.is_corrupt:
            raise BadImage("undecodable", "a frame is damaged")
        if frame.time is None:
            raise BadImage("no duration", "its frames have no times")
        if before is not None:
            yield partial(_picture, before, aspect), before.width * before.height, before.time, frame.time
        before = frame
    if before is not None:
        last = float(before.duration * before.time_base) if before.duration and before.time_base else step
        told = _end(stream.metadata.get("DURATION", ""))
        if before.time + last + 2 * step < 0.9 * told:
            raise BadImage("truncated", f"its last frame is at {before.time:.3g} s of {told:.3g} s")
        yield partial(_picture, before, aspect), before.width * before.height, before.time, before.time + last


def _end(text: str) -> float:
    """Seconds of Matroska's tag DURATION of a track, hours:minutes:seconds, where FFmpeg stops at what is damaged; 0
    where there is none."""
    parts = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", text)
    return 3600 * int(parts[1]) + 60 * int(parts[2]) + float(parts[3]) if parts else 0.0


def _picture(frame: Any, aspect: float) -> Image.Image:
    """A frame as an RGB image, upright: turned and mirrored as its file's matrix says (ISO 14496-12, 8.3.2), where
    x' = a x + c y and y' = b x + d y. Pixels that are no squares (of DV, HDV, DVDs; aspect: width over height) are
    made such, none is lost."""
    from PIL import Image

    pixels = frame.to_ndarray(format="rgb24")
    if aspect != 1:
        size = round(frame.width * max(1, aspect)), round(frame.height * max(1, 1 / aspect))
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    if (matrix := frame.side_data.get("DISPLAYMATRIX")) is None:
        return Image.fromarray(pixels)
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if (a or d) and (b or c):  # by no quarter of a circle
        return Image.fromarray(pixels).rotate(frame.rotation, expand=True)  # both against the clock
    pixels = pixels.swapaxes(0, 1) if b or c else pixels
    return Image.fromarray(np.ascontiguousarray(pixels[:: -1 if b + d < 0 else 1, :: -1 if a + c < 0 else 1]))


def mp4(frames: np.ndarray[Any, np.dtype[np.uint8]], rate: float) -> bytes:
    """The .mp4 file (H.264, 4:2:0, near to lossless) of frames [T, H, W, 1 or 3]; odd sides have a pixel more, since
    4:2:0 needs even ones."""
    import av

    if frames.shape[-1] == 1:
        frames = frames.repeat(3, axis=-1)
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    file = io.BytesIO()
    with av.open(file, mode="w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.options = {"crf": "12", "threads": "1"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
