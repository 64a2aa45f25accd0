"""What a batch says of its conditions, and what a backbone is given of them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Conditions = dict[str, Tensor]  # name -> one row a sample, e.g. {"class": int64 [n], "caption": int64 [n, T]}
# Beside them, where the latents of a batch are of unequal length: bool [n, *sides], which of their places are there, in
# each row at least one. It is no condition, and no null condition names it. No column has a name that begins so.
PLACES = "/places"
# So too, where a network is told its own guess of x0 (models/diffusion/self_conditioning.py): [n, C, *sides].
GUESS = "/guess"


class Embedded(NamedTuple):
    """Embedded conditions. A NamedTuple, because ZeRO-3's hooks look for tensors in tuples only."""

    vector: Tensor  # [n, D], added to the embedding of the time
    tokens: Tensor | None = None  # [n, S, D], for backbones that attend to them
    mask: Tensor | None = None  # bool [n, S]: which tokens are there; a row has at least one. None: all
    channels: Tensor | None = None  # [n, K, h, w], beside the latents [n, C, h, w]. None: as if they were zeros
    places: Tensor | None = None  # bool [n, *sides]: which places of the latents are there. None: all
