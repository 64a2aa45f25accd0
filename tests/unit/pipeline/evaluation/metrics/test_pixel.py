"""PSNR and SSIM against their formulas."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.metrics import pixel


def images(n: int = 5, size: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (n, size, size, channels)).astype(np.uint8)


def test_psnr_is_the_mean_over_images_of_the_formula() -> None:
    a = images(300)  # more than a chunk
    b = a + (np.arange(300) % 7 + 1).astype(np.uint8)[:, None, None, None]
    mse = (np.arange(300) % 7 + 1.0) ** 2
    assert pixel.psnr(a, b) == pytest.approx((10 * np.log10(255**2 / mse)).mean(), abs=1e-5)


def test_psnr_of_one_step_everywhere_is_48_dB() -> None:
    assert pixel.psnr(images(), images() + 1) == pytest.approx(20 * np.log10(255), abs=1e-5)


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    a, b = np.full((2, 16, 16, 1), 100, np.uint8), np.full((2, 16, 16, 1), 120, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert pixel.ssim(a, b) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1), abs=1e-6)


def test_ssim_is_one_for_equal_images_and_falls_with_noise() -> None:
    a = images(size=24)
    noisy = (a + np.random.default_rng(1).integers(0, 50, a.shape)).astype(np.uint8)
    assert pixel.ssim(a, a) == pytest.approx(1.0, abs=1e-5)
    assert pixel.ssim(a, noisy) < 0.99


@pytest.mark.parametrize("function", [pixel.psnr, pixel.ssim])
def test_wrong_shapes_and_types_are_refused(function) -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        function(images(3), images(4))
    with pytest.raises(ValueError, match="uint8"):
        function(images().astype(np.float32), images())


def test_what_has_no_value_is_refused() -> None:
    with pytest.raises(ValueError, match="infinite"):
        pixel.psnr(images(), images())
    with pytest.raises(ValueError, match="11 pixels"):
        pixel.ssim(images(size=8), images(size=8))
