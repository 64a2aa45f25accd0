"""Files of clips: which frames are taken at which rate, what is refused and why, windows, the loader's draws."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from pipeline.data import clips, look_through, sources, transforms, video_files
from pipeline.data.transforms import BadImage
from pipeline.errors import UserError
from tests.unit.pipeline.data.clips import TONE, animation, data, frames


def tones(content: bytes, one, ending: str) -> list[int]:
    """Which frames a clip has become, by the tone in the middle of each."""
    strip, _ = clips.strip(content, one, ending)
    pixels = np.asarray(strip)
    assert pixels.shape[0] % one.size == 0 and pixels.shape[1] == one.size
    return [round(int(frame[8, 8, 0]) / TONE) for frame in pixels.reshape(-1, one.size, one.size, 3)]


def reason(content: bytes, one, ending: str) -> str:
    with pytest.raises(BadImage) as caught:
        clips.strip(content, one, ending)
    return f"{caught.value.reason}: {caught.value.detail}"


@pytest.mark.parametrize("ending", ["webp", "gif", "apng"])
def test_frames_are_those_on_the_screen_in_the_middle_of_each_step(tmp_path, ending):
    content = animation(tmp_path / f"a.{ending}", frames(6), 100)
    assert tones(content, data(tmp_path, rate=10), ending) == [0, 1, 2, 3, 4, 5]
    assert tones(content, data(tmp_path, rate=5), ending) == [1, 3, 5]
    assert tones(content, data(tmp_path, rate=20), ending) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    uneven = animation(tmp_path / f"b.{ending}", frames(3), [300, 100, 200])
    assert tones(uneven, data(tmp_path, rate=10), ending) == [0, 0, 0, 1, 2, 2]


def test_times_of_a_png_are_fractions_of_a_second(tmp_path):
    content = animation(tmp_path / "a.apng", frames(24).repeat(2, axis=0)[:, ::2, ::2], 1000 / 60)
    shown = [(frame.start, frame.end) for frame in clips.opened(content, data(tmp_path), "apng")]
    assert shown[-1][1] == 48 / 60  # Pillow joins frames that are equal
    assert tones(content, data(tmp_path, rate=30), "apng") == list(range(24))


@pytest.mark.skipif(not video_files.there(), reason="needs av (the extra `video`)")
def test_video_goes_there_and_back(tmp_path):
    made = frames(6, side=32).repeat(1, axis=0)
    content = video_files.mp4(made, 10)
    found = tones(content, data(tmp_path, rate=10, size=32), "mp4")
    assert found == [0, 1, 2, 3, 4, 5]
    assert tones(content, data(tmp_path, rate=5, size=32), "mov") == [1, 3, 5]
    odd, size = clips.strip(video_files.mp4(frames(4, side=15), 25), data(tmp_path, rate=25), "mp4")
    assert size == (16, 16) and odd.size == (16, 64)
    # limits: what the file says of itself, before a frame is decoded
    assert reason(content, data(tmp_path, clip={"longest": 0.5}), "mp4").startswith("too long: 0.6 s")
    assert reason(content, data(tmp_path, clip={"most_frames": 5}), "mp4").startswith("too many frames")
    assert reason(content, data(tmp_path, clip={"most_pixels": 6000}), "mp4").startswith("oversized")
    assert reason(content, data(tmp_path, max_pixels=1000), "mp4").startswith("oversized: 32x32")
    for cut in (len(content) // 2, len(content) - 5):  # of the second FFmpeg gives all frames
        assert reason(content[:cut], data(tmp_path), "mp4").startswith("truncated")
    assert (
        reason(b"#EXTM3U\n/etc/passwd\n", data(tmp_path), "mp4") == "wrongly named: holds no MP4, MOV, WebM or Matroska"
    )


def video(kind, codec, pictures, aspect=1):
    """A file of ten frames a second, uint8 [T, H, W, 3]; aspect: width over height of a pixel."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.codec_context.sample_aspect_ratio = "yuv420p", aspect
        for pixels in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.skipif(not video_files.there(), reason="needs av (the extra `video`)")
def test_webm_is_read_and_one_that_is_cut_off_is_told(tmp_path):
    content, one = video("webm", "libvpx", frames(6, side=32)), data(tmp_path, rate=10, size=32)
    assert tones(content, one, "webm") == [0, 1, 2, 3, 4, 5] and not video_files.cut_off(content)
    assert video_files.cut_off(content[:-1]) and reason(content[:-20], one, "webm").startswith("truncated")
    at = (content.index(b"\x1f\x43\xb6\x75") + len(content)) // 2  # the cluster; the track's length is before it
    assert reason(content[:at] + bytes(len(content) - at), one, "webm").startswith("truncated: its last frame is at")


@pytest.mark.skipif(not video_files.there(), reason="needs av (the extra `video`)")
@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((0, 1, -1, 0), lambda seen: np.rot90(seen, -1)),
        ((-1, 0, 0, -1), lambda seen: np.rot90(seen, 2)),
        ((0, -1, 1, 0), lambda seen: np.rot90(seen, 1)),
        ((-1, 0, 0, 1), lambda seen: seen[:, ::-1]),  # as front cameras mirror
        ((1, 0, 0, -1), lambda seen: seen[::-1]),
        ((0, 1, 1, 0), lambda seen: seen.swapaxes(0, 1)),
    ],
)
def test_videos_are_turned_and_mirrored_as_their_matrix_says(tmp_path, matrix, turned):
    def packed(a, b, c, d):
        return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)

    seen = np.zeros((32, 64, 3), np.uint8)
    seen[:16, :16], seen[16:, :32], seen[:16, 32:] = 80, 160, 240
    content = video_files.mp4(np.stack([seen] * 3), 10)
    at = content.index(packed(1, 0, 0, 1), content.index(b"tkhd"))
    content = content[:at] + packed(*matrix) + content[at + 36 :]
    first = next(clips.opened(content, data(tmp_path), "mp4")).picture()
    expected = turned(seen)
    assert (
        first.size == expected.shape[1::-1] and abs(np.asarray(first, int)[4::8, 4::8] - expected[4::8, 4::8]).max() < 9
    )


@pytest.mark.skipif(not video_files.there(), reason="needs av (the extra `video`)")
def test_pixels_that_are_no_squares_become_such(tmp_path):
    content = video("mp4", "libx264", np.zeros((3, 48, 36, 3), np.uint8), Fraction(4, 3))
    assert clips.strip(content, data(tmp_path), "mp4")[1] == (48, 48)
    assert "in pixels 1.33 times as wide" in reason(content, data(tmp_path, max_pixels=2000), "mp4")


def test_frames_are_squared_and_laid_on_the_background(tmp_path):
    wide = np.zeros((3, 16, 32, 4), np.uint8)
    wide[:, :, 8:24] = np.array([1, 2, 3])[:, None, None, None] * 20  # the middle, half seen through
    wide[..., 3] = 0
    strip, size = clips.strip(animation(tmp_path / "a.webp", wide), data(tmp_path, background=[0, 255, 0]), "webp")
    assert size == (32, 16) and np.asarray(strip).reshape(-1, 3).tolist() == [[0, 255, 0]] * (3 * 16 * 16)
    gray, _ = clips.strip((tmp_path / "a.webp").read_bytes(), data(tmp_path, channels=1), "webp")
    assert gray.mode == "L"


def test_what_cannot_be_used_has_a_reason(tmp_path):
    one, moving = data(tmp_path), animation(tmp_path / "a.webp", frames(4, noise=1))
    still = io.BytesIO()
    Image.fromarray(frames(1)[0]).save(still, "WEBP", lossless=True)
    assert reason(still.getvalue(), one, "webp") == "one frame: a picture that stands still, no clip"
    assert reason(animation(tmp_path / "b.gif", frames(3), 0), one, "gif").startswith("no duration: its 3 frames")
    assert reason(moving[:-60], one, "webp").startswith("truncated")
    gif = animation(tmp_path / "c.gif", frames(6, noise=2))
    assert reason(gif[: len(gif) * 2 // 3], one, "gif").startswith(("truncated", "undecodable"))
    assert reason(gif[:-1], one, "gif") == "truncated: the GIF has no end"
    assert reason(b"nothing of the kind", one, "gif").startswith("undecodable")
    assert reason(gif, one, "webp") == "wrongly named: .webp holds GIF"
    assert reason(moving, data(tmp_path, frames=9), "webp") == "too short: 0.4 s are 4 frames at 10 a second, not 9"
    assert reason(moving, data(tmp_path, clip={"longest": 0.3}), "webp").startswith("too long: 0.4 s or more")
    assert reason(moving, data(tmp_path, max_pixels=255), "webp").startswith("oversized: 16x16")
    for limit, name in (({"most_frames": 3}, "too many frames"), ({"most_pixels": 1000}, "oversized")):
        for ending, content in (("webp", moving), ("gif", gif)):
            assert reason(content, data(tmp_path, clip=limit), ending).startswith(name)
    png = animation(tmp_path / "d.apng", frames(3, noise=3))
    damaged = png[:-40] + bytes([png[-40] ^ 1]) + png[-39:]
    assert reason(damaged, one, "apng").startswith("undecodable: wrong checksum")


def test_more_frames_than_are_decoded_of_one_strip_are_not_kept(tmp_path, monkeypatch):
    """A training step decodes the strip, and Pillow decodes no picture of more pixels."""
    assert 2 * (Image.MAX_IMAGE_PIXELS or 0) >= clips.MOST_KEPT
    content = animation(tmp_path / "a.webp", frames(5))
    monkeypatch.setattr(clips, "MOST_KEPT", 4 * 16 * 16)
    assert reason(content, data(tmp_path), "webp") == "too long: more than 4 frames of this size cannot be kept"


def test_limits_hold_before_frames_are_decoded(tmp_path, monkeypatch):
    content = animation(tmp_path / "a.webp", frames(5))
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile.load", lambda self: pytest.fail("was decoded"))
    assert reason(content, data(tmp_path, clip={"most_frames": 4}), "webp").startswith("too many frames")


def test_folders_are_classes_and_tables_have_columns(tmp_path):
    for name in ("a/one.webp", "a/two.gif", "b/one.webp", "b/one.gif"):
        animation(tmp_path / name, frames(3, noise=len(name)))
    (tmp_path / "a" / "picture.png").write_bytes(b"")
    (tmp_path / "a" / "old.avi").write_bytes(b"")
    found = sources.listing(data(tmp_path).source, sources.Digests(None))
    assert [(row.key, row.label) for row in found.rows] == [
        ("a/one", "a"), ("a/two", "a"), ("b/one.gif", "b"), ("b/one.webp", "b"),
    ]  # fmt: skip
    assert {row.together for row in found.rows} == {None, "b/one"} and found.classes == ["a", "b"]
    assert found.left_out.json() == {
        ".avi files, a format that is not read": [1, "a/old.avi"],
        "images, which are no clips": [1, "a/picture.png"],
    }
    table = tmp_path / "clips.csv"
    table.write_text("file,kind,actor\na/one.webp,x,7\nb/one.gif,y,7\ngone.webp,y,8\n")
    one = data(table, source={"column": "file", "label": "kind"}, split={"by": "column", "column": "actor"})
    found = sources.listing(one.source, sources.Digests(None))
    assert [(row.key, row.label, row.attributes) for row in found.rows] == [
        ("a/one", "x", {"actor": "7"}), ("b/one", "y", {"actor": "7"}),
    ] and found.missing == ["gone.webp"]  # fmt: skip
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "empty", "holds no clips"), (tmp_path / "a" / "picture.png", "or a table")):
        with pytest.raises(UserError, match=message):
            sources.listing(data(path).source, sources.Digests(None))


def test_without_av_video_is_refused_in_a_line(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"....ftyp")
    monkeypatch.setattr(video_files, "there", lambda: False)
    with pytest.raises(UserError, match=r"1 file of video, such as a: give the package av, by the extra `video`"):
        sources.listing(data(tmp_path).source, sources.Digests(None))


def test_what_may_not_be_read_is_said_in_a_line(tmp_path, monkeypatch):
    animation(tmp_path / "a.webp", frames(3))
    (tmp_path / "clips.csv").write_text("clip\na.webp\n")
    monkeypatch.setattr("pipeline.data.listing.sha256_file", Mock(side_effect=PermissionError(13, "Permission denied")))
    for path in (tmp_path, tmp_path / "clips.csv"):
        with pytest.raises(UserError, match=r"a\.webp: Permission denied; give rights to read it, or move it away"):
            sources.open_listing(data(path))


def test_windows_lie_where_they_are_asked_for(tmp_path):
    every = np.arange(8, dtype=np.uint8).reshape(1, 8, 1, 1)
    clip = data(tmp_path).clip
    places = {int(transforms.window(every, clip, draw)[0, 0, 0, 0]) for draw in np.linspace(0, 0.999, 50)}
    assert places == {0, 1, 2, 3, 4, 5}
    assert transforms.window(every, clip, None).flatten().tolist() == [2, 3, 4]
    for start, expected in (("first", [0, 1, 2]), ("middle", [2, 3, 4])):
        assert transforms.window(every, data(tmp_path, clip={"start": start}).clip, 0.9).flatten().tolist() == expected


def test_views_of_crops_are_other_windows_by_key_alone(tmp_path):
    pixels = np.arange(40, dtype=np.uint8)[None, :, None, None].repeat(16, 2).repeat(16, 3)
    views = ("as_is", "crop", "crop", "flip")
    found = [transforms.cut_views(pixels, 16, views, key, data(tmp_path).clip)[:, 0, 0, 0, 0] for key in "aab"]
    assert found[0].tolist() == found[1].tolist() != found[2].tolist()
    assert found[0][0] == found[0][3] == 18 and len({int(place) for place in found[0][:3]}) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"filters": [{"kind": "median"}]}, "`filters` is of images"),
        ({"buckets": {"multiple": 8}}, "`buckets` is of images"),
        ({"clip": None}, "`clip` and `source.kind: clips` go together"),
        ({"source": {"kind": "digits"}}, "`clip` and `source.kind: clips` go together"),
        ({"clip": {"frames": 0, "rate": 8}}, "greater than or equal to 1"),
        ({"clip": {"frames": 8, "rate": float("nan")}}, "rate"),
        ({"clip": {"frames": 9, "rate": 0.1}}, "need clips of more than 85 s, and `longest` is 60"),
    ],
)
def test_what_does_not_go_with_clips_is_said(more, message):
    from pipeline.schema.data import Data

    given = {"source": {"kind": "clips", "path": "x"}, "clip": {"frames": 8, "rate": 8}, **more}
    with pytest.raises(ValueError, match=message):
        Data.model_validate(given)


def test_animations_among_images_are_told_from_pictures(tmp_path):
    for ending in ("webp", "gif", "apng"):
        assert look_through.animated(animation(tmp_path / f"a.{ending}", frames(3)))
        still = io.BytesIO()
        Image.fromarray(frames(1)[0]).save(still, {"apng": "PNG"}.get(ending, ending.upper()))
        assert not look_through.animated(still.getvalue())
    assert (
        not look_through.animated(b"GIF89a") and not look_through.animated(b"") and not look_through.animated(b"RIFF")
    )


def test_a_gif_that_is_cut_off_anywhere_is_looked_through(tmp_path):
    """Behind its first frame it is still a picture, which ingest takes."""
    content = animation(tmp_path / "a.gif", frames(3, side=8, noise=3))
    found = [look_through.animated(content[:cut]) for cut in range(len(content))]
    assert found[-1] and not found[8]
