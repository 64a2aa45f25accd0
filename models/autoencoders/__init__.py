"""Autoencoders, one kind a file: `Model(config, channels)` with `encode(x) -> moments`, `decode(z) -> x`,
`forward(x, noise) -> (reconstruction, moments)`, `latent_channels`, and which sides its latents [n, C, *sides] have:
`factor` (side of x over side of z, for each side) or, for others, `latent_sides(sides)` of x and its inverse
`data_sides(sides)` of z, tuples of one, two or three.
Optional: `of_text`, true of a kind whose x is tokens int64 [n, L], decoded to logits; `blank(n)`, an x of such a kind;
parts with a bool attribute `activation_checkpointing` (registry.checkpoint_activations); `of_images`, false
of a kind whose x is no image [n, channels, H, W] in [-1, 1]; `of_clips`, true of one whose x is [n, channels, T, H, W],
with `usual_frames`, a T where nobody says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.patches import Size, sides_of


def latent_sides(model: Any, sides: Sequence[int]) -> tuple[int, ...]:
    """Sides of the latents of data with these sides. ValueError where the kind has none for them."""
    if hasattr(model, "latent_sides"):
        return tuple(model.latent_sides(tuple(sides)))
    return tuple(side // model.factor for side in sides)


def whole_sides(model: Any, size: Size) -> tuple[int, ...]:
    """Sides of x of a size: those given, or those of a square, of a clip of squares `usual_frames` before them."""
    usual = isinstance(size, int) and getattr(model, "of_clips", False)
    return (*([model.usual_frames] if usual else []), *sides_of(size))


def blank(model: Any, n: int, channels: int, size: Size) -> Any:
    """An x of n samples on torch's default device, whose numbers say nothing: images [n, channels, *sides]
    (`whole_sides`), or what the kind takes."""
    import torch

    return model.blank(n) if hasattr(model, "blank") else torch.empty(n, channels, *whole_sides(model, size))


def data_sides(model: Any, sides: Sequence[int]) -> tuple[int, ...]:
    """Sides of what is decoded from latents of these sides."""
    if hasattr(model, "data_sides"):
        return tuple(model.data_sides(tuple(sides)))
    return tuple(side * model.factor for side in sides)
