"""Files of clips: an animated WebP has all frames without loss, at their times; all of them moving; on the page."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from pipeline.generate.clip_samples import moving_grid, webp
from pipeline.pages.widgets import moving

CLIPS = np.random.default_rng(0).integers(0, 255, (3, 4, 8, 8, 3), np.uint8)


def read(content: bytes) -> tuple[np.ndarray, list[int]]:
    image = Image.open(io.BytesIO(content))
    frames, times = [], []
    for k in range(image.n_frames):
        image.seek(k)
        frames.append(np.asarray(image.convert("RGB")))
        times.append(image.info["duration"])
    return np.stack(frames), times


@pytest.mark.parametrize(("rate", "times"), [(8.0, [125] * 4), (30.0, [33, 34, 33, 33])])
def test_frames_come_back_bit_for_bit_at_their_times(rate, times):
    frames, found = read(webp(CLIPS[0], rate))
    np.testing.assert_array_equal(frames, CLIPS[0])
    assert found == times
    gray, _ = read(webp(CLIPS[0][..., :1], rate))
    np.testing.assert_array_equal(gray, CLIPS[0][..., :1].repeat(3, -1))


def test_equal_frames_are_shown_for_longer():
    frames, times = read(webp(CLIPS[0][[0, 0, 1]], 10))
    assert len(frames) == 2 and times == [200, 100]


def test_all_of_them_move_side_by_side():
    frames, _ = read(moving_grid(CLIPS, 8))
    assert frames.shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(frames[:, :8, 8:], CLIPS[1])
    html = moving(CLIPS, 8)
    data = re.search(r'src="data:image/webp;base64,([^"]+)"', html)
    assert data and len(read(base64.b64decode(data[1]))[0]) == 4 and "width:640px" in html
