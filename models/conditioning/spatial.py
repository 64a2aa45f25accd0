"""A map that lies over the latents: a mask, a small or a damaged image, another image's latents.

A backbone takes it as channels beside the latents. Which map it is, and at which size, is said by whoever makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.conditioning.embedded import Conditions, Embedded


class Spatial(nn.Module):
    """The map's channels and one more that says where they are told: a map of zeros is not the same as none.

    Has no parameters; how much of it matters is up to the backbone. width: of the vector, which is zero.
    """

    def __init__(self, name: str, channels: int, width: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"{name}.channels: expected at least 1, got {channels}")
        self.name, self.channels, self.width = name, channels, width

    def forward(self, condition: Conditions, x: Tensor) -> Embedded:
        """condition[name] float [n, K + 1, h, w], or [n, K + 1, 1, 1], one value for all places; the last channel is 1
        where the map is told and 0 where not -> channels float32 [n, K + 1, h, w] beside x [n, C, h, w], zero where
        they are not told.
        """
        given = condition[self.name].float()
        if given.shape[1] != self.channels + 1:
            raise ValueError(f"{self.name}: expected {self.channels} channels and one more, got {given.shape[1]}")
        told = given[:, -1:]  # [n, 1, h, w]
        channels = torch.cat([given[:, :-1] * told, told], dim=1).expand(-1, -1, *x.shape[2:])
        return Embedded(torch.zeros(x.shape[0], self.width, device=x.device), channels=channels)

    def null(self, n: int, device: torch.device | str = "cpu") -> Conditions:
        """No map, for n samples: [n, K + 1, 1, 1], which expands to any size."""
        return {self.name: torch.zeros(n, self.channels + 1, 1, 1, device=device)}


def width_of(own: Mapping[str, Any]) -> int:
    """Channels of a condition {channels, detail}: at each place detail x detail values (1 if it is not said) of each
    channel of the picture."""
    return int(own["channels"] * own.get("detail", 1) ** 2)


def beside(spatial: Mapping[str, Mapping[str, Any]] | None) -> int:
    """Channels that these conditions, by name, put beside the latents."""
    return sum(width_of(own) + 1 for own in (spatial or {}).values())
