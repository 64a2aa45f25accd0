"""Latents of one, two or three sides as a transformer's tokens: patches and back, and where each token lies.

Latents are [n, C, *sides]: of a sequence (length), of a map (rows, columns), of a clip (time, rows, columns). Tokens
follow each other as the latents do, the last side fastest. What a size is: a number, of a square, or the sides. What is
done with the tokens is said by a backbone (models/backbones/dit.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Size = int | Sequence[int]  # the side of a square [size, size], or one, two or three sides


def sides_of(size: Size) -> tuple[int, ...]:
    """The sides of latents of a size. ValueError for what is none."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if not 1 <= len(sides) <= 3 or min(sides) < 1:
        raise ValueError(f"size: expected one, two or three sides of at least 1, got {list(sides)}")
    return sides


def size_of(sides: Sequence[int]) -> int | list[int]:
    """The inverse of `sides_of`, as options hold it: a number for a square, else the sides."""
    return sides[0] if len(sides) == 2 and sides[0] == sides[1] else list(sides)


def grid_of(sides: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Patches along each side. ValueError for sides that they do not divide."""
    if any(side % p for side, p in zip(sides, patch, strict=True)):
        shown = patch[0] if len(set(patch)) == 1 else list(patch)
        raise ValueError(f"patch: expected a divisor of the latent size {size_of(sides)}, got {shown}")
    return tuple(side // p for side, p in zip(sides, patch, strict=True))


def patched(x: Tensor, patch: Sequence[int]) -> Tensor:
    """[n, C, g p, k q, ...] -> [n, T, C p q ...]: tokens of patches [p, q, ...], T = g k ..."""
    n, channels, *sides = x.shape
    grid = [side // p for side, p in zip(sides, patch, strict=True)]
    cut = [number for pair in zip(grid, patch, strict=True) for number in pair]
    inner, outer = range(3, 3 + len(cut), 2), range(2, 2 + len(cut), 2)
    # [n, C, g p, k q] -> [n, C, g, p, k, q] -> [n, g, k, C, p, q] -> [n, T, C p q]
    return x.reshape(n, channels, *cut).permute(0, *outer, 1, *inner).reshape(n, math.prod(grid), -1)


def unpatched(y: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """The inverse of `patched`, for tokens of a grid [g, k, ...]: [n, T, C p q ...] -> [n, C, g p, k q, ...]."""
    n, count = y.shape[0], len(grid)
    sides = [g * p for g, p in zip(grid, patch, strict=True)]
    order = [place for axis in range(count) for place in (1 + axis, 2 + count + axis)]
    # [n, T, C p q] -> [n, g, k, C, p, q] -> [n, C, g, p, k, q] -> [n, C, g p, k q]
    return y.reshape(n, *grid, -1, *patch).permute(0, 1 + count, *order).reshape(n, -1, *sides)


# ---- positions -------------------------------------------------------------------------------------------------------


def centred(count: int, base: int | None) -> Tensor:
    """Coordinates float64 [count], a distance of 1 apart, with the middle of 0 ... base - 1 (default: of their own).

    So a grid of another shape lies over the middle of the base grid, with its scale (Esser et al. 2024, section 5.3.2).
    """
    return torch.arange(count, dtype=torch.float64) + (0.0 if base is None else (base - count) / 2)


def shares(pairs: int, axes: int) -> list[int]:
    """Pairs of channels that code the place along each of so many axes: equally many, the first takes what is left."""
    if pairs < axes:
        raise ValueError(f"width: expected at least {2 * axes} channels for positions of {axes} sides, got {2 * pairs}")
    each = pairs // axes
    return [pairs - (axes - 1) * each, *[each] * (axes - 1)]


def _angles(pairs: int, grid: Sequence[int], slowest: float, base: Sequence[int] | None) -> list[Tensor]:
    """Coordinate times frequency along each axis, float64 [side, pairs of it]; frequencies fall from 1 towards
    1 / slowest.

    Rows and columns lie over the middle of those of `base`. Sequences and time begin at 0: the place of a beginning is
    the same for any length.
    """
    found = []
    for axis, (count, own) in enumerate(zip(grid, shares(pairs, len(grid)), strict=True)):
        spatial = len(grid) > 1 and axis >= len(grid) - 2
        places = centred(count, base[axis] if base and spatial else None)
        found.append(places[:, None] * slowest ** (-torch.arange(own, dtype=torch.float64) / own))
    return found


def _over_grid(codes: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """A code [side, c] along each axis -> float64 [tokens, sum of c], the last axis' code first."""
    spread = []
    for axis, code in reversed(list(enumerate(codes))):
        around = [1] * axis + [grid[axis]] + [1] * (len(grid) - axis - 1)
        spread.append(code.reshape(*around, -1).expand(*grid, -1))
    return torch.cat(spread, dim=-1).reshape(math.prod(grid), -1)


def sine_positions(width: int, grid: Sequence[int], base: Sequence[int] | None = None) -> Tensor:
    """Fixed positions of one, two or three axes, float32 [tokens, width]: a share of the width codes each, the last
    first (MAE's order). base: the grid over whose middle rows and columns of this one lie.
    """
    if width % 4:
        raise ValueError(f"width: expected a multiple of 4 for sine positions, got {width}")
    codes = [torch.cat([angles.sin(), angles.cos()], dim=1) for angles in _angles(width // 2, grid, 10000.0, base)]
    return _over_grid(codes, grid).float()


def rotary(width: int, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Cosines and sines that turn pairs of channels by place: two float32 [tokens, width / 2]; width: of a head.

    Su et al. 2021, "RoFormer"; on several axes a share of the pairs turns with each, the last axis' first. Their base,
    10000, is for a sequence; on a grid, which is shorter, it is 100, that of Heo et al. 2024, "Rotary Position
    Embedding for Vision Transformer". Attention sees differences only: no grid needs a middle.
    """
    if width % 4:
        raise ValueError(f"heads: expected a width of each that is a multiple of 4 for rotary positions, got {width}")
    angles = _over_grid(_angles(width // 2, grid, 10000.0 if len(grid) == 1 else 100.0, None), grid)
    return angles.cos().float(), angles.sin().float()


class Positions(nn.Module):
    """Where the tokens of a grid lie: sines to add to them, or (rope) a rotation of queries and keys. No parameters,
    and nothing in a state dict."""

    cos: Tensor
    sin: Tensor
    sines: Tensor

    def __init__(self, width: int, heads: int, grid: tuple[int, ...], rope: bool) -> None:
        super().__init__()
        self.width, self.heads, self.grid, self.rope = width, heads, grid, rope
        self._others: dict[tuple[tuple[int, ...], torch.device], tuple[Tensor, ...]] = {}
        if rope:
            cos, sin = rotary(width // heads, grid)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        else:
            self.register_buffer("sines", sine_positions(width, grid), persistent=False)

    def of(self, grid: tuple[int, ...], device: torch.device) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """Sines [T, D] or none, cosines and sines of the rotation [T, d / 2] or none, of a grid."""
        if grid == self.grid:
            return (None, (self.cos, self.sin)) if self.rope else (self.sines, None)
        if (key := (grid, device)) not in self._others:
            sines = () if self.rope else (sine_positions(self.width, grid, self.grid),)
            tables = rotary(self.width // self.heads, grid) if self.rope else sines
            self._others[key] = tuple(table.to(device) for table in tables)
        found = self._others[key]
        return (None, (found[0], found[1])) if self.rope else (found[0], None)
