"""Every kind of image file becomes the right RGB or gray pixels; what cannot is refused with its reason."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data import transforms
from pipeline.data.transforms import BadImage
from pipeline.schema.data import Augment, Data, DigitsSource

WHITE = (255, 255, 255)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(content, channels=3, background=WHITE, max_pixels=10_000, extension=None):
    return np.asarray(transforms.decode(content, channels, background, max_pixels, extension))


def test_transparency_is_laid_on_the_background():
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 100, 0, 128]]], np.uint8)
    result = decode(encode(Image.fromarray(pixels)), background=(0, 0, 100))
    np.testing.assert_array_equal(result[0, :2], [[200, 0, 0], [0, 0, 100]])
    np.testing.assert_allclose(result[0, 2], [100, 50, 50], atol=1)


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    np.testing.assert_array_equal(decode(encode(image)), [[[255, 0, 0], [0, 255, 0]]])
    np.testing.assert_array_equal(decode(encode(image, transparency=0)), [[[255, 255, 255], [0, 255, 0]]])


def test_sixteen_bits_are_scaled():
    image = Image.fromarray(np.array([[0, 257, 65535, 32896]], np.uint16))
    np.testing.assert_array_equal(decode(encode(image), channels=1), [[0, 1, 255, 128]])
    assert decode(encode(image, "TIFF"), channels=3).shape == (1, 4, 3)


def test_cmyk_gray_and_bits():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(decode(encode(cmyk, "JPEG", quality=95)).astype(int) - [255, 0, 0]).max() < 40
    np.testing.assert_array_equal(decode(encode(Image.new("1", (2, 2), 1))), np.full((2, 2, 3), 255))
    np.testing.assert_array_equal(decode(encode(Image.new("L", (2, 2), 7))), np.full((2, 2, 3), 7))
    assert decode(encode(Image.new("RGB", (2, 2), (255, 0, 0))), channels=1).tolist() == [[76, 76]] * 2


def test_orientation_is_applied():
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    result = decode(encode(image, exif=exif))
    assert result.shape == (4, 2, 3) and result[0, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("content", "extension", "reason"),
    [
        (b"no image at all", "png", "undecodable"),
        (b"", "png", "undecodable"),
        (encode(Image.effect_noise((64, 64), 90), "JPEG")[:-300], "jpg", "truncated"),
        (encode(Image.new("RGB", (101, 100))), "png", "oversized"),
        (encode(Image.new("RGB", (8, 8)), "JPEG"), "png", "wrongly named"),
        (encode(Image.fromarray(np.full((2, 2), 3.5, np.float32)), "TIFF"), "tif", "undecodable"),
    ],
)
def test_unusable_images_have_a_reason(content, extension, reason):
    with pytest.raises(BadImage) as caught:
        decode(content, extension=extension)
    assert caught.value.reason == reason


def test_shrinking_is_antialiased_and_centred():
    stripes = np.zeros((64, 128), np.uint8)
    stripes[:, 1::2] = 255
    small = transforms.to_array(transforms.shrink(Image.fromarray(stripes), 16, square=True))
    assert small.shape == (1, 16, 16) and np.abs(small[:, 2:-2, 2:-2].astype(int) - 127).max() <= 2
    sides = np.zeros((32, 96, 3), np.uint8)
    sides[:, 32:64] = (9, 8, 7)
    middle = transforms.to_array(transforms.shrink(Image.fromarray(sides), 32, square=True))
    np.testing.assert_array_equal(middle, np.broadcast_to(np.array([9, 8, 7])[:, None, None], (3, 32, 32)))
    assert transforms.shrink(Image.fromarray(sides), 16, square=False).size == (48, 16)


def test_crops_reach_every_place_and_flip_mirrors():
    pixels = np.arange(2 * 5 * 6).reshape(2, 5, 6)
    corners = {
        transforms.crop_flip(pixels, 4, t, u, False)[0, 0, 0] for t in (0, 0.499, 0.5, 0.999) for u in (0, 0.4, 0.999)
    }
    assert corners == {0, 1, 2, 6, 7, 8}
    np.testing.assert_array_equal(transforms.crop_flip(pixels, 5, 0, 0, True), pixels[:, :, 4::-1])


@pytest.mark.parametrize(("crop", "side"), [("centre", 32), ("random", 36)])
def test_kept_and_loaded_sizes(crop, side):
    data = Data(source=DigitsSource(kind="digits"), size=32, augment=Augment(crop=crop))
    content = encode(Image.new("RGB", (100, 50)))
    assert min(transforms.load_with_margin(content, data).shape[1:]) == side
    assert transforms.load_image(content, data).shape == (3, 32, 32)


def test_views_are_cut_by_key_and_number():
    pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 36), np.uint8)
    views = ["as_is", "flip", "crop", "crop_flip", "crop"]
    cut = transforms.cut_views(pixels, 32, views, "a/1")
    np.testing.assert_array_equal(cut[0], pixels[:, 4:36, 2:34])
    np.testing.assert_array_equal(cut[1], cut[0][:, :, ::-1])
    assert not np.array_equal(cut[2], cut[4]) and not np.array_equal(cut[3], cut[2][:, :, ::-1])
    np.testing.assert_array_equal(transforms.cut_views(pixels, 32, views[:3], "a/1"), cut[:3])  # more views change none
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 32, 32))[0]  # [9, 5, 3, 32, 32]
    places = []
    for i in range(400):
        crop = transforms.cut_views(pixels, 32, ["crop"], f"key {i}")[0]
        places += np.argwhere((windows == crop).all((2, 3, 4))).tolist()
    assert len(places) == 400 and len({tuple(place) for place in places}) == 9 * 5


def test_png_is_lossless_and_deterministic():
    image = Image.effect_noise((32, 32), 80)
    assert transforms.to_png(image) == transforms.to_png(image)
    np.testing.assert_array_equal(decode(transforms.to_png(image), channels=1), np.asarray(image))


def test_every_wrong_bit_of_a_png_is_found():
    content = transforms.to_png(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)))
    for bit in range(64, 8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadImage):
            transforms.decode(bytes(damaged), 1, (255, 255, 255), 10**6)
