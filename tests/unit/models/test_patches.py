"""Patches and positions of one, two and three sides against plain loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from models import layers
from models.patches import centred, grid_of, patched, rotary, shares, sides_of, sine_positions, size_of, unpatched

SIDES = {1: (6,), 2: (4, 6), 3: (4, 2, 6)}
PATCH = {1: (3,), 2: (2, 3), 3: (2, 1, 3)}


def test_what_a_size_is():
    assert sides_of(8) == (8, 8) and sides_of([8]) == (8,) and sides_of((2, 3, 4)) == (2, 3, 4)
    assert size_of((8, 8)) == 8 and size_of((8,)) == [8] and size_of((4, 6)) == [4, 6] and size_of((4, 4, 4)) == [4] * 3
    for size in ([], [2, 2, 2, 2], [0], 0):
        with pytest.raises(ValueError, match="one, two or three sides"):
            sides_of(size)
    with pytest.raises(ValueError, match=r"patch: expected a divisor of the latent size \[6\], got 4"):
        grid_of((6,), (4,))
    with pytest.raises(ValueError, match=r"of the latent size \[3, 4, 4\], got \[2, 4, 4\]"):
        grid_of((3, 4, 4), (2, 4, 4))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_patches_hold_their_places_and_come_back(count):
    sides, patch = SIDES[count], PATCH[count]
    x = torch.randn(2, 5, *sides)
    tokens, grid = patched(x, patch), grid_of(sides, patch)
    assert tokens.shape == (2, math.prod(grid), 5 * math.prod(patch))
    for token, place in enumerate(itertools.product(*map(range, grid))):
        cut = tuple(slice(i * p, (i + 1) * p) for i, p in zip(place, patch, strict=True))
        assert torch.equal(tokens[:, token], x[:, :, *cut].flatten(1))
    assert torch.equal(unpatched(tokens, grid, patch), x)


def test_shares_of_channels():
    assert shares(8, 1) == [8] and shares(8, 2) == [4, 4] and shares(8, 3) == [4, 2, 2]
    with pytest.raises(ValueError, match="expected at least 6 channels"):
        shares(2, 3)


@pytest.mark.parametrize("grid", [(5,), (3, 5), (2, 3, 5)], ids=str)
def test_sine_positions(grid):
    width = 16
    table = sine_positions(width, grid)
    assert table.shape == (math.prod(grid), width) and table.dtype == torch.float32
    assert len({tuple(row) for row in table.tolist()}) == len(table)
    pairs = shares(width // 2, len(grid))
    for token, place in enumerate(itertools.product(*map(range, grid))):
        codes = []
        for at, own in reversed(list(zip(place, pairs, strict=True))):  # the last side's first
            angles = [at * 10000 ** (-i / own) for i in range(own)]
            codes += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert table[token].tolist() == pytest.approx(codes, abs=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_positions(6, grid)


def test_positions_of_another_map_lie_over_the_middle():
    square = sine_positions(16, (6, 6)).view(6, 6, 16)
    assert torch.equal(sine_positions(16, (6, 6), (6, 6)).view(6, 6, 16), square)
    assert torch.equal(sine_positions(16, (4, 2), (6, 6)).view(4, 2, 16), square[1:5, 2:4])
    wide = sine_positions(16, (4, 9), (6, 6)).view(4, 9, 16)  # columns -1.5 ... 7.5: half-way between the square's
    torch.testing.assert_close(wide[:, :, 8:], square[1:5, :1, 8:].expand(4, 9, 8))
    torch.testing.assert_close(wide[0, 0, :1], torch.tensor([-1.5]).sin())
    assert centred(3, None).tolist() == [0, 1, 2] and centred(2, 6).tolist() == [2, 3]


def test_sequences_and_time_begin_at_their_beginning():
    """A shorter one is the beginning of a longer: what is padded and what is not have the same places."""
    assert torch.equal(sine_positions(16, (4,), (9,)), sine_positions(16, (9,))[:4])
    long = sine_positions(16, (5, 4, 4)).view(5, 4, 4, 16)
    assert torch.equal(sine_positions(16, (2, 4, 4), (5, 4, 4)).view(2, 4, 4, 16), long[:2])
    assert torch.equal(sine_positions(16, (2, 2, 2), (5, 4, 4)).view(2, 2, 2, 16), long[:2, 1:3, 1:3])


def test_rotary_scores_depend_on_the_difference_of_places_only():
    grid, width = (2, 5, 7), 16
    for sides in (grid[2:], grid[1:], grid):
        rotation = rotary(width, sides)
        generator = torch.Generator().manual_seed(0)
        q, k = (torch.randn(1, 1, 1, width, generator=generator).expand(1, 1, math.prod(sides), width) for _ in "qk")
        scores = (layers.rotate(q, rotation) @ layers.rotate(k, rotation).transpose(-1, -2)).view(*sides, *sides)
        first, step = (0,) * len(sides), (1,) * len(sides)
        last = tuple(side - 1 for side in sides)
        before = tuple(side - 2 for side in sides)
        torch.testing.assert_close(scores[(*step, *first)], scores[(*last, *before)])
        torch.testing.assert_close(scores[(*last, *last)], (q[0, 0, 0] * k[0, 0, 0]).sum())  # not against itself
        torch.testing.assert_close(layers.rotate(q, rotation).norm(dim=-1), q.norm(dim=-1))
        if len(sides) > 1:  # the axes are not the same
            assert not torch.allclose(scores[(*first, *first[:-1], 1)], scores[(*first, *first[:-2], 1, 0)])
        assert len(scores.view(math.prod(sides), -1)[0].unique()) == math.prod(sides)  # no two places alike
