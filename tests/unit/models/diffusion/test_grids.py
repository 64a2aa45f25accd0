"""Grids: ends, order, and the formulas of their papers."""

from __future__ import annotations

import math

import pytest
import torch

from models.diffusion.grids import GRIDS, grid, karras, resolution_shift, shifted, time_grid
from models.diffusion.process import EDM, SCHEDULES, RectifiedFlow, VariancePreserving, noise_level

PATHS = [RectifiedFlow(), *map(VariancePreserving, SCHEDULES), EDM()]


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("kind", ["auto", *GRIDS])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_falls_from_start_to_zero(kind, path, steps):
    for start in (1.0, 0.995):
        times = grid(kind, steps, path, start, shift=3.0)
        assert times.shape == (steps + 1,) and times.dtype == torch.float64
        assert times[-1] == 0 and 0.85 * start < times[0] <= start
        assert torch.all(torch.diff(times) < 0)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("kind", ["auto", "uniform", "cosine", "karras", "shifted"])
def test_ends_where_the_decoder_takes_over(kind, path):
    times = grid(kind, 10, path, 0.995, shift=3.0, noise_left=0.7)
    assert times.shape == (11,) and torch.all(torch.diff(times) < 0) and times[0] <= 0.995
    assert float(noise_level(path, times[-1])) == pytest.approx(0.7, rel=1e-6)


def test_noise_left_is_refused_where_nothing_remains():
    with pytest.raises(ValueError, match="noise_left: 1e\\+06 is all"):
        grid("uniform", 10, RectifiedFlow(), 0.995, noise_left=1e6)
    with pytest.raises(ValueError, match="the grid few ends without noise"):
        grid("few", 10, RectifiedFlow(), noise_left=0.5)


def test_uniform_is_the_plain_time_grid():
    times = grid("uniform", 4, RectifiedFlow(), 0.8)
    assert torch.equal(times, time_grid(4, 0.8))
    torch.testing.assert_close(times, torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0], dtype=torch.float64))
    for bad in ({"steps": 0}, {"steps": 2, "start": 0.0}, {"steps": 2, "start": 1.5}):
        with pytest.raises(ValueError, match="time grid"):
            time_grid(**bad)
    with pytest.raises(ValueError, match="karras"):
        grid("sine", 2, RectifiedFlow())


def test_cosine_has_equal_steps_of_the_angle():
    angles = torch.acos(1 - 2 * grid("cosine", 6, RectifiedFlow()))
    torch.testing.assert_close(angles, torch.linspace(math.pi, 0, 7, dtype=torch.float64))


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_karras_levels_are_equation_5_on_every_path(path):
    n, rho = 18, 7
    expected = [(80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho for i in range(n)]
    times = karras(n, path)
    levels = noise_level(path, times)
    torch.testing.assert_close(levels[:-1], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    assert levels[-1] == 0


def test_shifted_is_equation_23_and_multiplies_the_noise_level():
    path, t = RectifiedFlow(), torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    ratio = 9.0  # of the numbers of pixels, m / n
    expected = math.sqrt(ratio) * t / (1 + (math.sqrt(ratio) - 1) * t)
    torch.testing.assert_close(shifted(t, 3.0), expected)
    torch.testing.assert_close(noise_level(path, shifted(t, 3.0)), 3.0 * noise_level(path, t), rtol=1e-9, atol=0)
    assert torch.equal(shifted(t, 1.0), t)
    assert resolution_shift(96) == 3.0 and resolution_shift(32) == 1.0
    with pytest.raises(ValueError, match="shift"):
        shifted(t, 0.0)
